"""Serve a trained language model: a page to sample videos on, and the same as an HTTP API.

    python -m loong_jax.main --config=configs/serve.py

Then open http://127.0.0.1:8000. Needs `pip install "loong_jax[demo]"`. The model is the one of moving digits that
travels with the package, or `--config.model_path=../stage3`: the workdir of a language-model training, relative to the
workdir, or a model folder; `sampling` holds what a request does not say. One video is sampled at a time, the next ones
wait in a queue of `limits.max_waiting`; past that the answer is "busy" (503, with Retry-After).
`--config.host=0.0.0.0` opens it to other machines, and `--config.token_file=FILE` asks everyone for the secret in that
file; to strangers open it behind a reverse proxy alone, which has TLS and closes connections that say nothing. Ctrl-C
ends it.

The API, which /api/openapi.json describes in full; with a token, send `Authorization: Bearer TOKEN`:

    GET    /api/model                   frame size and rate, defaults and limits
    POST   /api/videos                  {"prompt": "a red 7 moves left", "seconds": 10, "seed": 1} -> {"id": ..., ...}
    GET    /api/videos/ID               where it is: waiting, sampling, done, stopped or failed
    GET    /api/videos/ID/events        the same as server-sent events, as it changes, with the new frames (PNG)
    DELETE /api/videos/ID               stop
    GET    /api/videos/ID/video.mp4     what there is of it, once it has ended

A video that nobody follows or asks for is given up after `limits.client_timeout` seconds. `:debug` serves the model of
`configs/stage3.py:debug`.
"""

import dataclasses

from loong_jax.config import SamplingChanges, ServeJob
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = ServeJob()
    if "debug" in parse_variant(variant, ("debug",)):
        job = dataclasses.replace(job, model_path="../stage3", sampling=SamplingChanges(seconds=4.0, top_k=20))
    return to_config_dict(job)
