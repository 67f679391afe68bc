"""Videos wait in a bounded queue, and one thread samples them in turn."""

import contextlib
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from loong_jax.config import ServingLimits
from loong_jax.out_of_memory import is_out_of_memory
from loong_jax.pipeline import Pipeline
from loong_jax.sampling.long_video import Request
from loong_jax.serving.served_video import ServedVideo
from loong_jax.video import Video, VideoWriter

_SWEEP_EVERY = 1.0  # seconds
_ABANDONED = "Nobody asked for it any longer."


class Busy(Exception):
    """The queue is full."""

    def __init__(self, retry_after: int):
        super().__init__("The server is busy: as many videos wait as it takes. Try again in a while.")
        self.retry_after = retry_after  # seconds


class Worker:
    """Samples one video at a time. Its methods may be called from any thread."""

    def __init__(self, pipe: Pipeline, limits: ServingLimits, folder: Path):
        """Prepare; videos are written into ``folder``, in which the mp4 files of an earlier server are removed."""
        self._pipe, self._limits, self._folder = pipe, limits, folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.mp4"):
            path.unlink()
        self._videos: dict[str, ServedVideo] = {}  # as they were asked for
        self._waiting: deque[ServedVideo] = deque()
        self._current: ServedVideo | None = None
        self._is_closed = False
        self._changed = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._work, name="sampling")

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()
        self._thread.join()

    def close(self) -> None:
        """End every video where it is; the thread ends after the latent frame that it is at."""
        with self._changed:
            self._is_closed = True
            for video in [*self._waiting, *filter(None, [self._current])]:
                self.stop(video, "The server ends.")
            self._changed.notify()

    def require_room(self) -> None:
        """Raise Busy where a video would find no place."""
        with self._changed:
            self._sweep()
            if self._is_closed or len(self._waiting) >= self._limits.max_waiting:
                left = self._current.progress.seconds_left if self._current else None
                raise Busy(max(1, math.ceil(left or 1)))

    def submit(self, request: Request) -> ServedVideo:
        """Have a video sampled, after those that wait.

        Raises:
            Busy: too many wait.
        """
        with self._changed:
            self.require_room()
            video = ServedVideo(request, self._folder)
            self._videos[video.id] = video
            self._waiting.append(video)
            self._tell_places()
            self._changed.notify()
            return video

    def find(self, video_id: str) -> ServedVideo | None:
        """The video of an id, or None where there is none, or none any longer."""
        video = self._videos.get(video_id)
        if video is not None:
            video.see()
        return video

    def stop(self, video: ServedVideo, reason: str) -> None:
        """End a video where it is; one that has ended stays as it is."""
        with self._changed:
            if video in self._waiting:
                self._waiting.remove(video)
                video.tell(state="stopped", message=reason)
                self._tell_places()
            elif not video.stop_reason:
                video.stop_reason = reason

    def _tell_places(self) -> None:
        for place, video in enumerate(self._waiting, start=0 if self._current is None else 1):
            if video.progress.ahead != place:
                video.tell(ahead=place)

    def _sweep(self) -> None:
        """Take videos out of the queue that nobody waits for, and forget those that were kept long enough."""
        for video in list(self._waiting):
            if video.is_abandoned(self._limits.client_timeout):
                self.stop(video, _ABANDONED)
        ended = sorted((video for video in self._videos.values() if video.is_over), key=lambda video: video.ended)
        too_many = ended[: -self._limits.keep_videos] if len(ended) > self._limits.keep_videos else []
        too_old = [video for video in ended if time.monotonic() - video.ended > self._limits.keep_seconds]
        for video in {*too_many, *too_old}:
            del self._videos[video.id]
            video.path.unlink(missing_ok=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._sweep()
                if self._is_closed:
                    return
                if not self._waiting:
                    self._changed.wait(_SWEEP_EVERY)
                    continue
                self._current = self._waiting.popleft()
                self._tell_places()
            self._sample(self._current)
            with self._changed:
                self._current = None
                self._tell_places()

    def _sample(self, video: ServedVideo) -> None:
        video.tell(state="sampling", ahead=0)
        end = time.monotonic() + self._limits.max_sampling_seconds
        try:
            with (
                contextlib.closing(self._frames(video.request)) as parts,
                VideoWriter(video.path, self._pipe.fps) as file,
            ):
                for frames in parts:
                    file.write(frames)
                    video.show(frames)
                    if self._shall_stop(video, end):
                        break
        except Exception as error:  # which must not take the server with it
            traceback.print_exc()
            for path in self._folder.glob(f"{video.id}*"):
                path.unlink()
            cause = "the machine's memory is not enough" if is_out_of_memory(error) else "the server's log says why"
            video.tell(state="failed", message=f"The video could not be sampled: {cause}.", seconds_left=None)
            return
        is_done = video.progress.frames == video.request.num_frames
        path = f"/api/videos/{video.id}/video.mp4" if video.progress.frames else None
        state, reason = ("done", "") if is_done else ("stopped", video.stop_reason)
        video.tell(state=state, message=reason, video=path, seconds_left=None, strip=None)

    def _frames(self, request: Request) -> Iterator[Video]:
        """What the video begins with, then what is sampled."""
        if request.start is not None:
            yield request.start[0, : request.num_frames]
        for piece in self._pipe.generator.roll_out(request):
            yield piece.frames[0]

    def _shall_stop(self, video: ServedVideo, end: float) -> bool:
        with self._changed:
            self._sweep()
        if video.is_abandoned(self._limits.client_timeout):
            self.stop(video, _ABANDONED)
        if time.monotonic() > end:
            self.stop(
                video, f"It took longer than the {self._limits.max_sampling_seconds:g} s that this server gives to one."
            )
        return bool(video.stop_reason)
