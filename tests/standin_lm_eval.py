#!/usr/bin/env python3
"""Stands in for `lm_eval`: takes its arguments, asks the server one question, leaves results that the real one wrote.

Of which model they are depends on the length that the server allows: 8192 is data/lm_eval/bf16, else int8.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

DATA = Path(__file__).parent / "data" / "lm_eval"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model", "model_args", "tasks", "output_path", "num_fewshot", "limit", "include_path"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--log_samples", action="store_true", required=True)
    parser.add_argument("--apply_chat_template", action="store_true")
    given = parser.parse_args()
    args = json.loads(given.model_args)
    with Path("asked.jsonl").open("a") as file:
        file.write(json.dumps({**vars(given), "args": args}) + "\n")
    body = {"model": args["model"], "prompt": "2 + 2 =", "max_tokens": 1}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    request = urllib.request.Request(args["base_url"], json.dumps(body).encode(), headers)  # noqa: S310 - http
    try:
        urllib.request.urlopen(request).read()  # noqa: S310
    except urllib.error.HTTPError as error:
        sys.exit(f"status {error.code} from the server, key {os.environ.get('OPENAI_API_KEY')}")
    print(f"WARNING  Left truncating context; {os.environ.get('OPENAI_API_KEY')}", flush=True)  # noqa: T201
    if os.environ.get("STANDIN_HANGS") == given.tasks:
        Path("hangs").touch()
        time.sleep(600)
    side = "bf16" if args.get("max_length") == 8192 else "int8"
    shutil.copytree(DATA / side / given.tasks, Path(given.output_path) / args["model"])


if __name__ == "__main__":
    main()
