"""The side of the measured process: answers requests for training steps with their seconds.

Imports only the standard library, because the peers run in other virtual environments.
"""

import json
import os
import sys
import time
from collections.abc import Iterator


def answer_requests(replies: int, parameters: int, anchors: int) -> Iterator[int]:
    """Reports the size of the program, then yields the number of steps of each request.

    A request is a number of steps on a line of standard input. It is answered when the caller asks for the next one, so
    the caller must have finished the steps by then. Ends with the standard input.

    Args:
      replies: file descriptor of the answers, one JSON object per line.
      parameters: number of trainable parameters.
      anchors: number of anchors per image.
    """
    with os.fdopen(replies, "w") as answers:
        print(json.dumps({"parameters": parameters, "anchors": anchors}), file=answers, flush=True)
        for line in sys.stdin:
            before, started = os.times(), time.perf_counter()
            yield int(line)
            seconds, after = time.perf_counter() - started, os.times()
            spent = {"seconds": seconds, "user": after.user - before.user, "system": after.system - before.system}
            print(json.dumps(spent), file=answers, flush=True)
