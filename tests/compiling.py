"""Compiles requests for other devices, one JSON line each, until one of them ends the process."""

import json
import sys

from experiments.planning.child import answer

for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
