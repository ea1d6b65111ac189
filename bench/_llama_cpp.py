"""llama.cpp through its batch interface: many sequences in one context, each step one batch of whatever is next.

Prompts go in as wholes as rows become free; then every row that runs adds one id to a step. Greedy.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCH = 2048  # ids in one step at most


class LlamaCpp:
    """A model and a context with `rows` sequences of at most `context` ids."""

    def __init__(self, path: Path, rows: int, context: int, threads: int) -> None:
        import llama_cpp
        import numpy

        self.c, self.numpy, self.rows = llama_cpp, numpy, rows
        self.log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.log, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = rows * -(-context // 256) * 256
        options.n_batch, options.n_ubatch, options.n_seq_max = BATCH, 512, rows
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        view = numpy.ctypeslib.as_array
        self.tokens, self.places = (view(a, (BATCH,)) for a in (self.batch.token, self.batch.pos))
        self.wanted, self.counts = (view(a, (BATCH,)) for a in (self.batch.logits, self.batch.n_seq_id))
        pointers = ctypes.cast(self.batch.seq_id, ctypes.POINTER(ctypes.c_void_p))
        first = [ctypes.cast(pointers[i], ctypes.POINTER(ctypes.c_int32)) for i in range(BATCH)]
        self.owners = first
        self.counts[:] = 1

    def run(self, prompts: Sequence[Sequence[int]], new: Sequence[int]) -> dict[str, float]:
        """All prompts, as many together as there are rows."""
        waiting = deque(range(len(prompts)))
        free = list(range(self.rows))[::-1]
        running: dict[int, list[int]] = {}  # row → [last id, its place, ids still to write]
        while waiting or running:
            used, ends = 0, []
            for row, (last, place, _) in running.items():
                self._put(used, [last], place, row)
                ends.append(row)
                used += 1
            while waiting and free and used + len(prompts[waiting[0]]) <= BATCH:
                number, row = waiting.popleft(), free.pop()
                ids = prompts[number]
                self._put(used, ids, 0, row)
                used += len(ids)
                running[row] = [0, len(ids) - 1, new[number]]
                ends.append(row)
            for row, token in zip(ends, self._step(used, len(ends)), strict=True):
                state = running[row]
                state[0], state[1], state[2] = token, state[1] + 1, state[2] - 1
                if not state[2]:
                    self.c.llama_memory_seq_rm(self.memory, row, -1, -1)
                    free.append(row)
                    del running[row]
        return {}

    def _put(self, at: int, ids: Sequence[int], place: int, row: int) -> None:
        end = at + len(ids)
        self.tokens[at:end] = ids
        self.places[at:end] = range(place, place + len(ids))
        self.wanted[at:end] = 0
        self.wanted[end - 1] = 1
        for i in range(at, end):
            self.owners[i][0] = row

    def _step(self, used: int, outputs: int) -> list[int]:
        """One forward pass over the first `used` ids of the batch; the best id of every output, in order."""
        self.batch.n_tokens = used
        status = self.c.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        logits = self.numpy.ctypeslib.as_array(self.c.llama_get_logits(self.context), (outputs, self.vocab))
        best: Any = logits.argmax(axis=1)
        found: list[int] = best.tolist()
        return found
