"""python3 time_model.py MODEL INPUTS: lies on the board; prints milliseconds of 20 runs after 5 that do not count."""

import sys
import time

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
inputs = dict(np.load(sys.argv[2]))
times = []
for _ in range(25):
    start = time.perf_counter()
    session.run(None, inputs)
    times.append(1000 * (time.perf_counter() - start))
print(*times[5:])
