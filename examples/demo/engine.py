"""One SGLang engine: started, asked for text and log-probabilities, stopped.

A process of its own, because SGLang ends the process that started it when one of its own fails, and
so that each engine of the demonstration starts from nothing. The request is a JSON file:

    {"model": folder, "plugin": true, "override": {...} | null, "prompts": [...], "max_new_tokens": n,
     "windows": [[token ids]], "result": file to write}

Progress goes to stdout, one `@ done total` a line; everything else that is printed is SGLang's log.
"""

import json
import os
import sys
import time
from pathlib import Path

BATCH = 8  # prompts in one call: SGLang schedules them, and the bar moves


def arguments_of(request: dict) -> dict:
    """Keyword arguments of `sglang.Engine`: with the plugin, or without any trace of flexact."""
    common = {"dtype": "float32", "context_length": 1024, "random_seed": 7, "log_level": "warning"}
    if request["plugin"]:
        import flexact.sglang

        return flexact.sglang.server_args(request["model"], config_override=request.get("override"), **common)
    os.environ["SGLANG_PLUGINS"] = "none"
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    return {
        "model_path": request["model"],
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "max_total_tokens": 8192,
        "max_running_requests": 8,
        "mem_fraction_static": 0.5,
        **common,
    }


def log_probabilities(engine, windows: list[list[int]]) -> list[list[float]]:
    """log p of every token but the first of each window [W][L] → [W][L - 1]."""
    out = []
    for first in range(0, len(windows), BATCH):
        answers = engine.generate(
            input_ids=windows[first : first + BATCH],
            sampling_params={"max_new_tokens": 1, "temperature": 0},
            return_logprob=True,
            logprob_start_len=0,
        )
        for answer in answers:
            out.append([entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]])
        print(f"@ {len(out)} {len(windows)}", flush=True)
    return out


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        arguments = arguments_of(request)
    except ValueError as error:  # a configuration that flexact refuses
        print(f"refused: {error}", file=sys.stderr)
        sys.exit(2)
    started = time.monotonic()
    import sglang

    engine = sglang.Engine(**arguments)
    result = {
        "version": sglang.__version__,
        "start_seconds": time.monotonic() - started,
        "arguments": arguments,
    }
    if request["prompts"]:
        sampling = {"max_new_tokens": request["max_new_tokens"], "temperature": 0.7, "top_k": 40}
        answers = engine.generate(request["prompts"], sampling)
        result["texts"] = [answer["text"] for answer in answers]
    result["log_probabilities"] = log_probabilities(engine, request["windows"])
    if request["plugin"]:
        import flexact.sglang

        result["report"] = flexact.sglang.report(engine)
    result["seconds"] = time.monotonic() - started
    Path(request["result"]).write_text(json.dumps(result))
    engine.shutdown()


if __name__ == "__main__":
    main()
