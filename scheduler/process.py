"""The engine process: loads the model, runs the loop, and ends when the front end says so or has gone.

Started as `python -m distllm.scheduler.process FD`, FD being one end of a socket pair.
"""

import contextlib
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

from distllm.engine.checkpoint import CheckpointError
from distllm.engine.config import EngineConfig
from distllm.engine.interface import Executor
from distllm.engine.parent_death import end_with_parent, leave_signals_to_the_front_end
from distllm.engine.pipeline.coordinator.snapshot import ClusterSnapshot, OnCluster
from distllm.engine.pipeline.security.state_dir import ClusterStateError
from distllm.engine.pool_size import OutOfMemory
from distllm.engine.progress import OnLost, Progress
from distllm.scheduler.channel import BlockingChannel, ChannelClosed
from distllm.scheduler.loop import EngineLoop
from distllm.scheduler.messages import ClusterReport, Loading, Ready, StartEngine, StartFailed, ToEngine
from distllm.scheduler.scheduler import Scheduler

logger = logging.getLogger("distllm.engine")

BuildExecutor = Callable[[EngineConfig, Progress, OnLost, OnCluster], Executor]


def main(fd: int, build: BuildExecutor) -> None:
    """Serve the front end at the other end of `fd` with the executor that `build` makes."""
    leave_signals_to_the_front_end()
    end_with_parent()
    channel: BlockingChannel[ToEngine] = BlockingChannel(socket.socket(fileno=fd), ToEngine)
    try:
        start = channel.receive()
    except ChannelClosed:  # the front end has gone before this process was up
        return
    if not isinstance(start, StartEngine):
        raise TypeError(f"the first message must be StartEngine, not {type(start).__name__}")
    logging.basicConfig(level=start.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    executor = _load(start, build, channel)
    if executor is None:
        return
    inbox: SimpleQueue[ToEngine] = SimpleQueue()
    threading.Thread(target=_receive_forever, args=(channel, inbox), daemon=True).start()
    gc.freeze()  # what is loaded stays, and need not be looked at in every collection
    gc.enable()
    channel.send(Ready(executor.info))
    try:
        EngineLoop(Scheduler(start.scheduler, executor.info), executor, inbox, channel.send).run()
    except ChannelClosed:
        os._exit(0)
    finally:
        executor.close()


def _load(start: StartEngine, build: BuildExecutor, channel: BlockingChannel[ToEngine]) -> Executor | None:
    """The executor, or None once the front end has been told why there is none."""
    has_loaded = False

    def on_lost(reason: str) -> None:
        logger.error("%s", reason)
        with contextlib.suppress(ChannelClosed):
            if not has_loaded:
                channel.send(StartFailed(reason))
        os._exit(1)  # the thread that waits for what is lost would wait for ever

    def on_progress(activity: str, done: float) -> None:
        channel.send(Loading(activity, done))

    def on_cluster(cluster: ClusterSnapshot) -> None:
        with contextlib.suppress(ChannelClosed):  # then this process is about to end
            channel.send(ClusterReport(cluster))

    try:
        executor = build(start.engine, on_progress, on_lost, on_cluster)
        has_loaded = True
        return executor
    except ChannelClosed:
        os._exit(0)
    except Exception as error:
        logger.debug("the model could not be loaded", exc_info=True)
        channel.send(StartFailed(_reason(error)))
        return None


def _reason(error: Exception) -> str:
    """One line: an error made for the operator as it is, any other with its kind and where to find the rest."""
    if isinstance(error, CheckpointError | ClusterStateError | OutOfMemory | ValueError):
        return str(error)
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"the model cannot be loaded: {type(error).__name__}: {first}; --log-level DEBUG shows where"


def _receive_forever(channel: BlockingChannel[ToEngine], inbox: "SimpleQueue[ToEngine]") -> None:
    """Move messages to the loop. The front end's end of the socket closes with it, whatever killed it."""
    try:
        while True:
            inbox.put(channel.receive())
    except ChannelClosed:
        os._exit(0)
    except Exception:
        logger.exception("a message from the front end cannot be read")
        os._exit(1)  # rather than live on deaf


if __name__ == "__main__":
    gc.disable()  # until the model is loaded: a sixth of the time that importing torch and transformers takes
    from distllm.engine.factory import build_executor

    main(int(sys.argv[1]), build_executor)
