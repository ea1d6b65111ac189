"""Replicas of a model on a Ray cluster, behind the same server: one front, many engines.

    serve/app.py ── Replicas (Chat, Complete, Embed, Score, Tokenize) ── Ray Serve ── Replica ── an engine
                                                                            └─────── Replica ── an engine

The front is the application as it runs on one machine: keys, limits, metrics, streams and WebSockets are its own, so
they are the same everywhere and every request is seen once. What Ray Serve does is what it is for: it places replicas,
starts them anew when they die, has as many as the requests at work ask for, and sends each to the one that our policy
(`routing.py`) prefers. A closed stream ends its work on the replica; an error of ours arrives as itself.

Ray is met in this file alone, which nothing imports until it is asked for.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from openbook import errors
from openbook.chat import Chat, Complete, Delta, Embed, Message, Sampling, Score, Scored, Terms, Tokenize, Tool, ToolUse
from openbook.chat import require as require_of
from openbook.chat.protocols import DEFAULT, FREELY, NOTHING, PLAIN
from openbook.errors import Busy, MissingExtra, OpenbookError, RemoteError
from openbook.serve.routing import Prefixes, marks_of
from openbook.serve.served import Served

try:
    import ray
    from ray import serve
    from ray.exceptions import ObjectLostError, RayActorError, RayError, WorkerCrashedError
    from ray.serve.config import RequestRouterConfig
    from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
    from ray.serve.request_router import RequestRouter
except ImportError as error:
    raise MissingExtra("ray", "ray", "Serving from a cluster") from error

Make = Callable[[], Sequence[Served]]
_front = token_hex(4)  # of several on one cluster
LOST = (RayActorError, WorkerCrashedError, ObjectLostError, DeploymentUnavailableError)  # not its defects: RayTaskError
_numbers = itertools.count(1)  # of deployments: an old one may still be there when its successor comes
_apps: set[str] = set()  # deployed here


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many replicas, and when: more where each has more than `target` requests at work, fewer where less."""

    least: int = 1
    most: int = 1
    target: float = 16.0
    gpus: float = 0.0  # of each; Ray hides them from who asks for none
    ongoing: int = 256  # requests at work on a replica at most; more wait for it
    upscale_seconds: float = 10.0
    downscale_seconds: float = 300.0
    drain: float = 600.0  # seconds that a replica that leaves has for what it runs; Ray would kill it after 20


@dataclass(frozen=True)
class Fault:
    """An error on its way from a replica: values, for an exception may not be able to travel."""

    kind: str
    message: str
    retry_after: float

    @staticmethod
    def of(error: OpenbookError) -> Fault:
        """What is known of it."""
        return Fault(type(error).__name__, str(error), error.retry_after if isinstance(error, Busy) else 1.0)

    def error(self) -> OpenbookError:
        """The same error, here."""
        kind = vars(errors).get(self.kind)
        if not isinstance(kind, type) or not issubclass(kind, OpenbookError) or issubclass(kind, MissingExtra):
            return OpenbookError(self.message)
        return kind(self.message, self.retry_after) if issubclass(kind, Busy) else kind(self.message)


# ------------------------------------------------------------------------------------------------ on a replica


class Replica:
    """What runs on the cluster: the endpoints that `make` made there, by their names."""

    def __init__(self, make: Make) -> None:
        self.served = {one.name: one for one in make()}

    async def about(self, _: Sequence[bytes]) -> list[tuple[str, Sampling, str | None, int | None]]:
        """Name, defaults, parent and context of each."""
        return [(one.name, one.defaults, one.parent, one.context) for one in self.served.values()]

    async def chat(
        self, _: Sequence[bytes], name: str, messages: Sequence[Message], sampling: Sampling, more: Mapping[str, Any]
    ) -> AsyncIterator[Delta | Fault]:
        """The deltas of an answer, or what went wrong."""
        try:
            stream = require_of(self.served[name].endpoint, Chat).chat(messages, sampling, **more)
            async with aclosing(stream) as deltas:  # type: ignore[type-var]  # all of ours are generators
                async for delta in deltas:
                    yield delta
        except OpenbookError as error:
            yield Fault.of(error)

    async def complete(
        self, _: Sequence[bytes], name: str, prompt: str | Sequence[int], sampling: Sampling, terms: Terms
    ) -> AsyncIterator[Delta | Fault]:
        """The deltas of a continuation, or what went wrong."""
        try:
            stream = require_of(self.served[name].endpoint, Complete).complete(prompt, sampling, terms=terms)
            async with aclosing(stream) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    yield delta
        except OpenbookError as error:
            yield Fault.of(error)

    async def ask(self, _: Sequence[bytes], name: str, what: str, value: Any) -> Any:
        """Anything else that can be asked, or what went wrong."""
        endpoint = self.served[name].endpoint
        try:
            match what:
                case "embed":
                    return await require_of(endpoint, Embed).embed(value)
                case "score":
                    return await require_of(endpoint, Score).score(value)
                case "tokenize":
                    return await require_of(endpoint, Tokenize).tokenize(value)
            return await require_of(endpoint, Tokenize).detokenize(value)
        except OpenbookError as error:
            return Fault.of(error)


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Ray Serve's choice of a replica, by our policy; the others follow, the least busy first, should it be full."""

    def initialize_state(self, slack: int = 8) -> None:
        """Called once by Ray Serve, with what the deployment says."""
        self._policy = Prefixes(slack)
        self._at_work: Counter[Any] = Counter()  # Ray's own count is forgotten after ten seconds without news

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Ranks: the chosen one, then the rest."""
        if not candidate_replicas or pending_request is None or not pending_request.args:
            return [list(candidate_replicas)]
        known = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = {name: self._at_work[one.replica_id] for name, one in known.items()}
        first = self._policy.choose(pending_request.args[0], loads)
        rest = sorted((name for name in known if name != first), key=lambda name: loads[name])
        return [[known[first]], *([known[name]] for name in rest)]

    def on_send_request(self, replica_id: Any) -> None:
        """Called by Ray Serve with each request that it sends."""
        super().on_send_request(replica_id)
        self._at_work[replica_id] += 1

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """Called by Ray Serve once for each of them, however it ends."""
        super().on_request_completed(replica_id, internal_request_id)
        self._at_work[replica_id] -= 1
        if self._at_work[replica_id] <= 0:  # so that those that are gone leave nothing behind
            del self._at_work[replica_id]


# ------------------------------------------------------------------------------------------------ at the front


class Replicas:
    """All replicas of a model as one endpoint."""

    def __init__(self, handle: Any, app: str, name: str) -> None:
        self._handle, self._app, self._name = handle, app, name
        self.ongoing = 0

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        sampling: Sampling = DEFAULT,
        *,
        tools: Sequence[Tool] = (),
        use: ToolUse = FREELY,
        trim: bool = False,
        terms: Terms = PLAIN,
        variables: Mapping[str, Any] = NOTHING,
    ) -> AsyncIterator[Delta]:
        """See `Chat`; what cannot be served is said before the first delta."""
        heard = tuple(map(Message.of, messages))
        marks = marks_of(terms.tenant, [repr(tools)] * bool(tools) + [f"{one.role}\n{one.content}" for one in heard])
        more = {"tools": tuple(tools), "use": use, "trim": trim, "terms": terms, "variables": dict(variables)}
        return self._stream("chat", marks, heard, sampling, more)

    def complete(
        self, prompt: str | Sequence[int], sampling: Sampling = DEFAULT, *, terms: Terms = PLAIN
    ) -> AsyncIterator[Delta]:
        """See `Complete`."""
        said = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
        return self._stream("complete", marks_of(terms.tenant, [said]), prompt, sampling, terms)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See `Embed`."""
        found: list[list[float]] = await self._ask("embed", list(texts))
        return found

    async def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """See `Score`."""
        found: list[Scored] = await self._ask("score", list(pairs))
        return found

    async def tokenize(self, text: str) -> list[int]:
        """See `Tokenize`."""
        found: list[int] = await self._ask("tokenize", text)
        return found

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `Tokenize`."""
        found: str = await self._ask("detokenize", list(ids))
        return found

    def gauges(self) -> dict[str, float]:
        """How many replicas there are, and what they have to do."""
        try:
            deployments = serve.status().applications[self._app].deployments.values()
        except (KeyError, RayError, RayServeException):  # taken down, or nobody there to ask
            return {"replicas": 0, "running": self.ongoing}
        running = sum(count for one in deployments for state, count in one.replica_states.items() if state == "RUNNING")
        return {"replicas": running, "running": self.ongoing}

    def close(self) -> None:
        """Takes the replicas down."""
        _delete(self._app)

    async def _stream(self, method: str, *words: Any) -> AsyncIterator[Delta]:
        marks, *rest = words
        self.ongoing += 1
        response = self._handle.options(method_name=method, stream=True).remote(marks, self._name, *rest)
        try:
            async for item in response:
                if isinstance(item, Fault):
                    raise item.error()
                yield item
        except LOST as error:
            raise self._lost() from error
        except BaseException:  # the caller left, or it failed: what still runs there ends
            response.cancel()
            raise
        finally:
            self.ongoing -= 1

    async def _ask(self, what: str, value: Any) -> Any:
        response = self._handle.options(method_name="ask").remote([], self._name, what, value)
        try:
            found = await response
        except LOST as error:
            raise self._lost() from error
        except asyncio.CancelledError:
            response.cancel()
            raise
        if isinstance(found, Fault):
            raise found.error()
        return found

    def _lost(self) -> RemoteError:
        return RemoteError(f"A replica of {self._name!r} was lost at work; another takes its place. Ask again.")


def join(address: str | None = None, cpus: int | None = None) -> None:
    """Joins the cluster at `address`; without one begins a cluster of this machine alone.

    Ray listens on every interface, whatever address it is given: what keeps strangers out is its token, which it asks
    for by itself where a cluster is begun here (from 2.59 on). At `address` that is its owner's to see to.
    """
    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning", "configure_logging": False}
        if address is None:
            # Ray takes the machine's own address in place of this one, as of today: see above.
            local: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "num_cpus": cpus}
            ray.init(**local, **quiet, object_store_memory=128 << 20)
        else:
            ray.init(address, **quiet)
    serve.start(proxy_location="Disabled")


def leave() -> None:
    """Takes down what was deployed here, and nothing else of the cluster's, and leaves it."""
    for app in list(_apps):
        _delete(app)
    ray.shutdown()


def _delete(app: str) -> None:
    serve.delete(app)
    _apps.discard(app)


def deploy(make: Make, scale: Scale) -> list[Served]:
    """Replicas, each with what `make` makes on it; they are ready when this returns. OpenbookError where none comes up.

    `make` travels to the replicas: a function of a module, or a partial of one, whose arguments can be pickled.
    """
    app = f"openbook-{_front}-{next(_numbers)}"
    # While a model is swapped there are twice as many; Ray would let the new ones wait for the old ones' place.
    share = float(ray.cluster_resources().get("CPU", 1.0)) / (2 * scale.most + 1)
    deployment = serve.deployment(
        Replica,
        name="replica",
        max_ongoing_requests=scale.ongoing,
        max_queued_requests=-1,
        graceful_shutdown_timeout_s=scale.drain,
        autoscaling_config={
            "min_replicas": scale.least,
            "initial_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.target,
            "upscale_delay_s": scale.upscale_seconds,
            "downscale_delay_s": scale.downscale_seconds,
        },
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        ray_actor_options={"num_cpus": min(1.0, share), "num_gpus": scale.gpus},
    )
    try:
        handle = serve.run(deployment.bind(make), name=app, route_prefix=None)
    except Exception as error:
        there = serve.status().applications.get(app)  # None: it did not come as far as the cluster
        why = "; ".join(one.message for one in there.deployments.values()) if there else ""
        if there:
            serve.delete(app)
        raise OpenbookError(f"No replica came up: {why or error}") from error

    _apps.add(app)

    async def about() -> list[tuple[str, Sampling, str | None, int | None]]:
        found: list[tuple[str, Sampling, str | None, int | None]] = await handle.options(method_name="about").remote([])
        return found

    return [
        Served(name=name, endpoint=Replicas(handle, app, name), defaults=defaults, parent=parent, context=context)
        for name, defaults, parent, context in asyncio.run(about())
    ]
