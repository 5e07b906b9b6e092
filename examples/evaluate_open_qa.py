"""Evaluate a question answerer, on one process or on many: the command `realm-hf evaluate` as a script.

accelerate launch examples/evaluate_open_qa.py --model runs/qa/model --output_dir runs/qa/nq --benchmark nq_open
accelerate launch examples/evaluate_open_qa.py --model runs/qa/model --output_dir runs/qa/own --questions own.jsonl
"""

import sys

from realm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
