"""Work on threads beside the computation, a little ahead of whoever takes the results."""
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch


def in_order(function, items, threads, device=None):
    """Yield function(item) for each item, in order, computed on so many threads (0: on this one).

    At most threads + 1 results wait. A thread's error is raised here. device: a GPU that is used."""
    if not threads:
        yield from map(function, items)
        return

    def set_gpu():
        if device is not None and device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)

    pool = ThreadPoolExecutor(threads, initializer=set_gpu)
    waiting = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the consumer stops, or Ctrl-C: no thread outlives this
        pool.shutdown(cancel_futures=True)
