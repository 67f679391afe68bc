"""A trained model as a web page and an HTTP API.

server (one process) -> api (routes) behind guard (sizes, token, headers)
messages (the JSON) -> reading (checked, before anything is sampled) -> worker (queue and one thread) -> served_video
"""
