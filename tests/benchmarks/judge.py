"""How long the exact judge takes for 1,000 images: `python tests/benchmarks/judge.py` (target: 3 s on 2 cores)."""

import random
import time

from lit_align.shapes.judge import judge
from lit_align.shapes.render import render
from lit_align.shapes.scenes import SKILLS, random_caption, random_scene

rng = random.Random(0)
captions = [random_caption(rng.choice(SKILLS), rng) for _ in range(1000)]
images = render([random_scene(c, rng) for c in captions])
times = []
for _ in range(3):
    start = time.perf_counter()
    judge(images, [str(c) for c in captions])
    times.append(time.perf_counter() - start)
print(f"1,000 images: {min(times):.2f} s (best of 3)")
