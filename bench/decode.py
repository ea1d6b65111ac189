"""Decoding and prefill in bf16 at 15M and 135M parameters, batch 1 and 8, beside transformers.generate.

    python bench/decode.py [--sizes 15m,135m] [--rounds 5] [--out runs/bench]

Decode: 64 tokens after a prompt of 64, greedy, the prompt's time included. Prefill: one token after a prompt of 512.
Both read the same folder, written by us.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from _harness import Work, arguments, compare, report, serve
from _shapes import LLAMA_SHAPES, ours


def setup(which: str) -> tuple[Work, dict[str, Any]]:
    """A contender: who, what (decode or prefill), batch, folder."""
    who, what, size, batch, folder = which.split("|")
    rows, prompt, new = int(batch), *((64, 64) if what == "decode" else (512, 1))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, LLAMA_SHAPES[size]["vocab"], (rows, prompt), generator=generator)
    if who == "ours":
        import openbook as ob
        from openbook import runtime
        from openbook.generate.loop import generate_ids
        from openbook.generate.sampling import Sampling

        runtime.keep_memory()
        model = ob.load(folder, dtype="bfloat16")
        sampling = Sampling(max_tokens=new, temperature=0.0, ignore_eos=True)

        def run() -> Any:
            return generate_ids(model, ids.tolist(), sampling)

    else:
        import transformers

        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

        def run() -> Any:
            return theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)

    run(), run()

    def work() -> float:
        run()
        return float(rows * (new if what == "decode" else prompt))

    return work, {}


if __name__ == "__main__":
    options = arguments(__doc__ or "", sizes="15m,135m")
    if options.child:
        serve(setup, options.child)
    else:
        from openbook.models.load import save
        from openbook.models.make import make

        cases = {}
        with tempfile.TemporaryDirectory() as place:
            for size in options.sizes.split(","):
                folder = Path(place) / size
                save(make(ours(size)), folder, dtype="bfloat16")
                for what in ("decode", "prefill"):
                    for batch in (1, 8):
                        words = {
                            who: ["--child", f"{who}|{what}|{size}|{batch}|{folder}"]
                            for who in ("transformers", "ours")
                        }
                        cases[f"{what} {size} × {batch}"] = compare(words, options.rounds)
        report("decode", "Generation in bf16", "tokens/s", cases, options.out, "transformers")
