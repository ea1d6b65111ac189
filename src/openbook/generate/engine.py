"""The engine: many requests, one model, one step at a time; what a request gets does not depend on the others.

    plan   = scheduler.next(now)           who runs, how many tokens, which pages            scheduler.py, pages.py
    batch  = Packed(store, plan)           one packed row and the tables of its pages        packed.py, store.py
    logits = model(batch)                  only the rows that are wanted
    tokens = choose(logits)                sampling, grammars, drafts                        choose.py
    scheduler.commit(plan, tokens)         pages are filled, windows move, outputs end

Ids and bytes only; `chat/engine.py` puts text around it and `live.py` a thread. A model is served in its serving form
(`nn/serving.py`): activations in fp32, weights plain, packed bf16 or packed int8, operators whose rows do not depend on
each other. Where the native operators are there, the engine is `exact`: tokens and log-probabilities of a request are
the same to the last bit whatever runs beside it, however its prompt is cut, after a prefix hit, after preemption.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from openbook import log
from openbook.adapters.lora import Bank
from openbook.errors import InputError, Refusal
from openbook.generate.choose import Chooser
from openbook.generate.draft_model import ModelDrafter, share_of
from openbook.generate.drafting import LookupDrafter, Speculator
from openbook.generate.failing import fail, tell
from openbook.generate.feed import quiet
from openbook.generate.forward import Reader
from openbook.generate.job import Job, Listener, root_of
from openbook.generate.memory import memory_for
from openbook.generate.output import Lines, TokenBytes
from openbook.generate.plan import Ask, Plan
from openbook.generate.plan import Sequence as Run
from openbook.generate.requests import Finish, Generation, Token, accept
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Full, Scheduler
from openbook.generate.settings import Settings, Stats, Waits
from openbook.generate.store import Store
from openbook.generate.threads import Threads
from openbook.generate.turn import Turn
from openbook.native import paged as paged_native
from openbook.native import rows as native
from openbook.nn.model import LanguageModel
from openbook.nn.serving import form_of, put, restore, serve_form

# How far log-probabilities of a close engine may lie apart between two ways of running the same request (fp32).
EPSILON = 1e-3
KV = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


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
        draft: LanguageModel | None = None,
    ) -> None:
        self.settings = settings or Settings()
        if model.spec.prefixed:
            raise Refusal(
                "This model reads its prompt both ways, hence whole, and an engine reads prompts in parts and shares "
                "them: write with `generate_ids` (openbook.generate.loop)."
            )
        self.model = self._formed(model)
        self.eos, self.start = tuple(eos), tuple(start)
        self.token_bytes = token_bytes
        s = self.settings
        self.memory = memory_for(s.memory if memory is None else memory)
        reserved = 0 if draft is None else int(self.memory * share_of(draft, model))
        self.memory -= reserved
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
        self.stats, self.waits = Stats(), Waits()
        self.lines = Lines(model.spec.embed.vocab, token_bytes, eos)
        self.speculator = self._speculator(draft, reserved)
        self.jobs: dict[int, Job] = {}
        self._number = 0
        self.bank: Bank | None = None
        self.reader = Reader(model, self.store, self.jobs, self.stats)
        self.chooser = Chooser(model.spec.embed.vocab, model.device)
        self.clock = time.monotonic
        self.still = False  # whether the last step found nothing to do: all that could run is held

    def _formed(self, model: LanguageModel) -> LanguageModel:
        """The model in its serving form: as it was given (int8, say), or by the type of its weights."""
        self.form = form_of(model)
        self._restores = self.form is None and model.device.type == "cpu"
        if self._restores:
            self.form = "fp32" if model.embed.tokens.weight.dtype == torch.float32 else "bf16"
            serve_form(model, self.form)
        return model

    def restore(self) -> LanguageModel:
        """The model as it was before this engine took it, where it was this engine that changed its form."""
        for name in [] if self.bank is None else self.bank.names:
            self.unload_adapter(name)
        if self._restores:
            restore(self.model)
        return self.model

    @property
    def version(self) -> int:
        """Of the weights: how often some were pushed into the model, by whichever engine."""
        return self.model.pushed

    @property
    def exact(self) -> bool:
        """Whether answers are the same to the last bit whatever runs beside them; else they are close (`EPSILON`)."""
        return self.form is not None and native.library() is not None and paged_native.paged() is not None

    def _kv(self) -> torch.dtype:
        if self.settings.kv is None:
            return torch.float32 if self.form == "fp32" else torch.bfloat16
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
        now = self.clock()
        variant = self._adapter(adapter)
        job = Job(request, self.lines.begin(request), listener, adapter)
        if not request.room and sampling.prompt_logprobs is None:
            for line in job.lines:
                line.done = True
            job.ended = True
            return job
        root = (tenant, variant, self.version, request.rotary, request.source)
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

    def check(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> None:
        """Raises what `submit` would raise for requests that cannot be served at all."""
        context = self.settings.context
        for request in accept(self.model, prompts, samplings, eos=self.eos, start=self.start, context=context):
            if request.sampling.grammar is not None:
                self.lines.begin(request)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Adds a PEFT LoRA folder under a name that requests can ask for. Loading only adds."""
        if self.bank is None:
            self.bank = self.reader.bank = Bank(self.model)
        self.bank.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Takes an adapter away. A `Refusal` while requests use it."""
        if self.bank is None:
            raise InputError(f"There is no adapter '{name}': none is loaded.")
        using = sum(job.adapter == name for job in self.jobs.values())
        if using:
            raise Refusal(f"The adapter '{name}' is used by {using} requests: let them end, or cancel them.")
        self.bank.unload(name)

    def _adapter(self, name: str | None) -> tuple[str, int] | None:
        """A request's adapter and its version. `InputError` for one that is not there."""
        if name is None:
            return None
        if self.bank is None:
            raise InputError(f"There is no adapter '{name}': none is loaded.")
        return name, self.bank.version(name)

    def push(self, weights: Mapping[str, Tensor]) -> int:
        """Puts new weights in place by their logical names, between two steps; the number of this version.

        All or nothing: names, shapes and numbers are checked first. What runs goes on from the keys and values it has;
        nothing that the old weights computed is found by later requests. Every token says which version made it.
        """
        put(self.model, weights)
        if self.bank is not None:
            self.bank.refresh()
        for job in self.jobs.values():
            job.renew(self.version)
        return self.version

    def cancel(self, job: Job, error: str | None = None) -> list[Token]:
        """Ends what is not done of a request, as it is; `error`: because it failed."""
        events = self.end(job, "cancelled" if error is None else "error", error)
        tell(self, events)
        self._sweep()
        return events

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
            raise InputError(
                f"There are {len(prompts)} prompts and {len(samplings)} samplings: give one, or one for each."
            )
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
        """One step for all that can run; the tokens it wrote, and the ends of requests that ended without one.

        Where it raises, the requests that were in it have ended with the cause, and the next step may be right.
        """
        threads = torch.get_num_threads()
        try:
            return self._step(threads)
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    def _step(self, threads: int) -> list[Token]:
        if (
            self.settings.adapt_threads
            and self.exact
            and (self.reader.threads is None or self.reader.threads.most != threads)
        ):
            self.reader.threads = Threads(threads)
        if self.speculator is not None:
            self._draft(self.speculator)
        began = time.perf_counter()
        plan = self.scheduler.next(now := self.clock())
        self.waits.note(plan.begun, now)
        self.stats.schedule += time.perf_counter() - began
        self.still = not (plan.works or plan.ended or plan.preempted)
        events: list[Token] = []
        try:
            self._carry_out(plan, events)
        except BaseException as error:  # an interrupt, or a defect of ours: the engine stays usable
            if self.scheduler.underway is plan:
                self.scheduler.abort(plan)
            if isinstance(error, Exception):
                events += fail(self, plan, error)
            raise
        finally:
            tell(self, events)
            self._sweep()
        return events

    def _carry_out(self, plan: Plan, events: list[Token]) -> None:
        for sequence, why in plan.ended:
            job = self.jobs[sequence.ask.key]
            if why == "deadline":
                events += self.end(job, "deadline")
            else:
                events += self.end(job, "error", "The engine's memory does not hold this request.")
        for sequence in plan.preempted:
            self.reader.sourced.pop(sequence, None)
            self.stats.preemptions += 1
        if plan.works:
            self.store.copy_pages(plan.copies)
            self.store.copy_slots(plan.slot_copies)
            with quiet(self.model):
                self._run(plan, events)

    def _sweep(self) -> None:
        """Forgets requests that are done."""
        for key in [key for key, job in self.jobs.items() if not job.open]:
            self.jobs.pop(key).ended = True

    def end(self, job: Job, finish: Finish, error: str | None = None) -> list[Token]:
        """Ends all choices of a request that are not done; gives back what they held."""
        for sequence in [*job.sequences.values(), *(job.beams.sequences if job.beams is not None else ())]:
            self.release(sequence)
        job.sequences.clear()
        return [job.end(line, finish, error) for line in job.lines if not line.done]

    def release(self, sequence: Run) -> None:
        """Gives back what a sequence held."""
        self.scheduler.finish(sequence)
        if self.speculator is not None:
            self.speculator.forget(sequence)
        self.reader.sourced.pop(sequence, None)

    def _speculator(self, draft: LanguageModel | None, reserved: int) -> Speculator | None:
        s = self.settings
        if s.speculation not in (None, "lookup"):
            raise InputError(
                f'`speculation` must be "lookup" or None (or give a `draft` model): got {s.speculation!r}.'
            )
        if draft is not None:
            return Speculator(ModelDrafter(draft, self.model, reserved, self._kv()), s.drafts)
        return None if s.speculation is None else Speculator(LookupDrafter(), s.drafts)

    def _draft(self, speculator: Speculator) -> None:
        """Drafts for those that are about to write."""
        ready = []
        for sequence in self.scheduler.running:
            job = self.jobs[sequence.ask.key]
            if sequence.computed == len(sequence.ids) - 1 and not sequence.paused and job.forked and job.beams is None:
                ready.append((sequence, job.lines[sequence.choice]))
        if ready:
            try:
                with quiet(self.model):
                    speculator.propose(ready)
            except Exception as error:  # drafts are never owed
                log.note(f"Drafts failed and are left out ({type(error).__name__}: {error}).", once=f"drafts {error}")
                self.stats.failures += 1
                for sequence, _ in ready:
                    sequence.drafts = []

    def _run(self, plan: Plan, events: list[Token]) -> None:
        failed: dict[Run, str] = {}
        try:
            reading = self.reader.read(plan.works)
        except Exception:  # whose fault was it? Each alone; who fails alone has failed
            reading, failed = self.reader.read_each(plan.works)
        began = time.perf_counter()
        Turn(self, plan, reading, events, failed).take()
        self.stats.choose += time.perf_counter() - began
        self.stats.steps += 1
        for sequence, why in failed.items():
            self.stats.failures += 1
            events += self.end(self.jobs[sequence.ask.key], "error", why)
