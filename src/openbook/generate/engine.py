"""The engine: many requests, one model, one step at a time; what a request gets does not depend on the others.

    plan   = scheduler.next(now)           who runs, how many tokens, which pages            scheduler.py, pages.py
    batch  = Packed(store, plan)           one packed row and the tables of its pages        packed.py, store.py
    logits = model(batch)                  only the rows that are wanted
    tokens = choose(logits)                sampling, grammars, drafts                        choose.py
    scheduler.commit(plan, tokens)         pages are filled, windows move, outputs end

Ids and bytes only; `chat/engine.py` puts text around it and `live.py` a thread. A model is served in its serving form
(`nn/serving.py`): activations in fp32, weights plain, packed bf16 or packed int8, operators whose rows do not depend on
each other. Where the native operators are there, the engine is `exact`: a request's tokens and log-probabilities are the
same to the last bit whatever runs beside it, however its prompt is cut, after a prefix hit, after preemption.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from openbook.errors import InputError, Refusal
from openbook.generate.choose import Chooser
from openbook.generate.feed import SCORED, quiet
from openbook.generate.job import Job, Listener, root_of
from openbook.generate.memory import memory_for
from openbook.generate.output import Line, TokenBytes, logprobs
from openbook.generate.packed import Biases, Packed, Sources, source_slots
from openbook.generate.plan import Ask, Plan, Work
from openbook.generate.plan import Sequence as Run
from openbook.generate.requests import Generation, Token, accept
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Full, Scheduler
from openbook.generate.store import PAGE, Store
from openbook.nn.model import LanguageModel

KV = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an engine shares one model."""

    memory: int | str | None = None
    """Bytes for keys, values and states ("2GiB"); None: a part of what is free."""
    rows: int = 64
    """Sequences in one step at most."""
    tokens: int = 512
    """Tokens in one step at most: prompts are read in chunks of what the running sequences leave."""
    page: int = PAGE
    """Tokens of a page."""
    kv: str | None = None
    """Keys and values in float32, bfloat16 or int8; None: float32 where the weights are, else bfloat16."""
    context: int | None = None
    """Tokens of prompt and output together; None: the model's own."""
    prefix_cache: bool = True
    """Whether pages of earlier prompts are reused."""
    prefix_ttl: float | None = None
    """Seconds that unused pages are kept; None: until memory is wanted."""
    prefix_minimum: int = 0
    """Shorter prefixes (in tokens) are not kept."""
    waiting: int = 1024
    """Requests that wait at most."""
    waiting_tokens: int = 1 << 20
    """Prompt tokens that wait at most."""


@dataclass
class Stats:
    """What an engine has done; seconds by part of a step."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    failures: int = 0
    schedule: float = 0.0
    pack: float = 0.0
    model: float = 0.0
    choose: float = 0.0
    commit: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class Engine:
    """Runs requests over `model`. One thread at a time: `submit`, `cancel`, `step`.

    token_bytes   the bytes of an id, for stop strings and `Token.text`
    eos, start    ids that end an output; what an encoder-decoder's output begins with
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: Settings | None = None,
        *,
        memory: int | str | None = None,
        eos: Sequence[int] = (),
        start: Sequence[int] = (),
        token_bytes: TokenBytes | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.model = model
        self.eos, self.start = tuple(eos), tuple(start)
        self.token_bytes = token_bytes
        s = self.settings
        self.memory = memory_for(s.memory if memory is None else memory)
        self.store = Store(model, self.memory, self._kv(), s.page)
        self.scheduler = Scheduler(
            self.store.shape,
            self.memory,
            rows=s.rows,
            tokens=s.tokens,
            waiting=s.waiting,
            waiting_tokens=s.waiting_tokens,
            prefix_cache=s.prefix_cache,
            ttl=s.prefix_ttl,
            minimum=s.prefix_minimum,
        )
        self.stats = Stats()
        self.version = 0
        self.jobs: dict[int, Job] = {}
        self._number = 0
        self._biases = Biases()
        self._sourced: dict[Run, list[int]] = {}  # whose source's keys are in these pages
        self._chooser = Chooser(model.spec.embed.vocab, model.device)
        self.clock = time.monotonic

    def _kv(self) -> torch.dtype:
        if self.settings.kv is None:
            return torch.float32 if self.model.dtype == torch.float32 else torch.bfloat16
        if self.settings.kv not in KV:
            raise InputError(f"`kv` must be one of {', '.join(KV)}: got {self.settings.kv!r}.")
        return KV[self.settings.kv]

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        adapter: str | None = None,
        tenant: str = "",
        priority: int = 0,
        timeout: float | None = None,
        listener: Listener | None = None,
    ) -> Job:
        """Takes a request; its tokens come from `step`, and to `listener` if there is one.

        Raises `InputError` for what cannot be served, `Refusal` for a model that cannot write, and `Full` when too many
        requests wait already.
        """
        (request,) = accept(
            self.model, [prompt], [sampling], eos=self.eos, start=self.start, context=self.settings.context,
            first=self._number,
        )  # fmt: skip
        if sampling.stop and self.token_bytes is None:
            raise InputError("`stop` strings are matched on the bytes of tokens: hand in `token_bytes`, or use `stop_ids`.")
        now = self.clock()
        job = Job(request, [Line(request, choice) for choice in range(sampling.n)], listener, adapter)
        if not request.room and sampling.prompt_logprobs is None:
            for line in job.lines:
                line.done = True
            job.ended = True
            return job
        root = (tenant, adapter, self.version, request.rotary, request.source)
        sequence = self.scheduler.add(
            Ask(
                key=request.number,
                ids=list(request.prompt),
                room=request.room,
                root=root_of(root),
                share=sampling.prompt_logprobs is None,
                source=len(request.source or ()),
                priority=priority,
                tenant=tenant,
                deadline=None if timeout is None else now + timeout,
                arrived=now,
            ),
            now,
        )
        job.sequences[0] = sequence
        self._number += 1
        self.jobs[job.key] = job
        return job

    def cancel(self, job: Job) -> list[Token]:
        """Ends what is not done of a request, as it is."""
        return self._close(job, "cancelled")

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not self.jobs

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], *, adapter: str | None = None
    ) -> list[Generation]:
        """Runs prompts to their end: `n` generations for each, in the order of prompts and choices."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(samplings) != len(prompts):
            raise InputError(f"There are {len(prompts)} prompts and {len(samplings)} samplings: give one, or one for each.")
        jobs: list[Job] = []
        try:
            for prompt, own in zip(prompts, samplings, strict=True):
                jobs.append(self._patiently(prompt, own, adapter))
            while any(not job.ended for job in jobs):
                self.step()
        except BaseException:
            for job in jobs:
                self.cancel(job)
            raise
        results = []
        for number, job in enumerate(jobs):
            for generation in job.generations:
                generation.prompt = number
                results.append(generation)
        return results

    def _patiently(self, prompt: Sequence[int], sampling: Sampling, adapter: str | None) -> Job:
        while True:
            try:
                return self.submit(prompt, sampling, adapter=adapter)
            except Full:
                if self.idle:
                    raise
                self.step()

    # -- a step -------------------------------------------------------------------------------------------------------

    def step(self) -> list[Token]:
        """One step for all that can run; the tokens it wrote, and the ends of requests that ended without one."""
        began = time.perf_counter()
        plan = self.scheduler.next(self.clock())
        self.stats.schedule += time.perf_counter() - began
        events: list[Token] = []
        for sequence, why in plan.ended:
            job = self.jobs[sequence.ask.key]
            if why == "deadline":
                events += self._close(job, "deadline")
            else:
                events += self._close(job, "error", "The engine's memory does not hold this request.")
        for sequence in plan.preempted:
            self._sourced.pop(sequence, None)
            self.stats.preemptions += 1
        if plan.works:
            self.store.copy_pages(plan.copies)
            self.store.copy_slots(plan.slot_copies)
            self.store.clear_slots(plan.slot_clears)
            with quiet(self.model):
                events += self._run(plan)
        for event in events:
            listener = self.jobs[event.prompt].listener if event.prompt in self.jobs else None
            if listener is not None:
                listener(event)
        self._sweep()
        return events

    def _run(self, plan: Plan) -> list[Token]:
        try:
            logits, failed = self._forward(plan.works), {}
        except Exception:  # whose fault was it? Each alone; who fails alone has failed
            logits, failed = self._one_by_one(plan.works)
        return self._choose(plan, logits, failed)
