"""`openbook serve DIR…`: models behind the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openbook import log
from openbook.cli.loading import Machine, load_both
from openbook.errors import UsageError
from openbook.options import Positional, Repeated, parse

if TYPE_CHECKING:
    from openbook.serve.cluster import Scale
    from openbook.serve.served import Served
    from openbook.serve.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Config(Machine):
    """Serve models over HTTP, as the OpenAI API: any of its clients works.

    A model is DIR, or NAME=DIR; its name is otherwise that of its folder. An address (http://…) serves what another
    endpoint does, under this server's keys, limits and metrics. The server listens at once, and
    /health/ready says when the models are there. The first SIGTERM or Ctrl-C lets running work finish.
    """

    dirs: Positional[tuple[str, ...]]
    """Model folders, names in the local Hugging Face cache, or addresses; NAME=DIR gives one a name."""
    adapter: Repeated[tuple[str, ...]] = ()
    """NAME=DIR of a LoRA folder, served as a model of that name; with several models MODEL/NAME=DIR."""
    host: str = "127.0.0.1"
    """Where to listen; without --api-keys this machine only."""
    port: int = 8000
    """0: any that is free."""
    api_keys: Path | None = None
    """File of hashed keys, which `openbook key` makes (docs/server.md)."""
    quantize: str | None = None
    """int8: matrices as whole numbers."""
    memory: str | None = None
    """Of keys and values of each model, such as 2GiB; default: a share of what is free."""
    rows: int = 64
    """Requests in one step at most."""
    waiting: int = 1024
    """Requests that wait for a model at most; more are answered 429."""
    waiting_tokens: int = 1 << 20
    """Prompt tokens that wait for a model at most."""
    context: int | None = None
    """Tokens of prompt and answer together at most; default: the model's own, as far as memory goes."""
    speculation: str | None = None
    """lookup: drafts from the text itself."""
    generation_config: Literal["auto", "none"] = "auto"
    """Whether requests that do not say are sampled as the folder's generation_config.json has it; none: plainly."""
    timeout: float | None = None
    """Seconds that a request may take; then 504."""
    drain: float = 600.0
    """Seconds that running work is given at the end."""
    stall: float = 30.0
    """Seconds that a reader may leave its stream unread; then it is dropped."""
    keep_alive: float = 15.0
    """Seconds between signs of life in a stream in which nothing comes."""
    body: int = 8 << 20
    """Bytes of a request at most."""
    requests: int = 16_384
    """Requests at work at once; more are answered 429."""
    connections: int = 20_000
    """Open connections; more are answered 503."""
    cached_price: float = 0.1
    """Of a prompt token that was found in the prefix cache, in tokens, for `billed_tokens`."""
    allow_host: Repeated[tuple[str, ...]] = ()
    """A name under which this server is reached (the Host header)."""
    allow_origin: Repeated[tuple[str, ...]] = ()
    """An origin whose pages may use this server (CORS, WebSockets)."""
    open_health: bool = False
    """/health/live and /health/ready answer without a key."""
    log_prompts: bool = False
    """Log what is asked, not its length alone."""
    tracing: bool = False
    """Spans for OpenTelemetry; also on where OTEL_EXPORTER_OTLP_ENDPOINT is set."""

    ray: bool = False
    """Engines run as replicas on a Ray cluster; this process is their front."""
    replicas: str = "1"
    """With --ray, how many: N, or MIN:MAX by how many requests are at work."""
    ray_address: str | None = None
    """With --ray, the cluster to join; default: one of this machine alone."""

    def scale(self) -> Scale | None:
        """How many replicas; None: the engines run in this process."""
        if not self.ray:
            if self.replicas != "1" or self.ray_address is not None:
                raise UsageError("--replicas and --ray-address are of --ray.")
            return None
        from openbook.serve.cluster import Scale

        least, _, most = self.replicas.partition(":")
        if not least.isdigit() or not (most or "1").isdigit() or not 1 <= int(least) <= int(most or least):
            raise UsageError(f"--replicas is a number of at least 1, or MIN:MAX: got '{self.replicas}'.")
        gpus = float(self.device.startswith("cuda"))
        return Scale(least=int(least), most=int(most or least), gpus=gpus)

    def settings(self) -> Settings:
        """Of the server."""
        from openbook.serve.settings import Settings

        return Settings(
            host=self.host,
            port=self.port,
            api_keys=self.api_keys,
            timeout=self.timeout,
            drain=self.drain,
            stall=self.stall,
            keep_alive=self.keep_alive,
            body=self.body,
            requests=self.requests,
            connections=self.connections,
            cached_price=self.cached_price,
            hosts=self.allow_host,
            origins=self.allow_origin,
            open_health=self.open_health,
            log_prompts=self.log_prompts,
            tracing=self.tracing,
        )


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    named = _named(config.dirs)
    adapters = _adapters(config.adapter, list(named))
    from openbook.serve.run import raise_limits, serve

    raise_limits()
    settings, scale = config.settings(), config.scale()
    if scale is not None:
        from openbook.serve.cluster import join, leave

        join(config.ray_address)

    def load_one(name: str, folder: str) -> list[Served]:
        make = partial(load, name, folder, adapters.get(name, {}), config)
        return make() if scale is None else deployed(make, scale)

    try:
        serve(lambda: [one for name in named for one in load_one(name, named[name])], settings, load_one)
    finally:
        if scale is not None:
            leave()
    return 0


def load(name: str, folder: str, adapters: dict[str, str], config: Config) -> list[Served]:
    """A model, and an endpoint for each of its adapters; or what an address serves."""
    if "://" in folder:
        return remote(name, folder)
    from openbook.chat.defaults import defaults_of
    from openbook.chat.engine import Engine
    from openbook.generate.sampling import Sampling
    from openbook.generate.settings import Settings as Sharing
    from openbook.models.folder import resolve
    from openbook.serve.served import Served

    model, tokenizer = load_both(folder, config, config.quantize)
    sharing = Sharing(
        memory=config.memory,
        rows=config.rows,
        waiting=config.waiting,
        waiting_tokens=config.waiting_tokens,
        context=config.context,
        speculation=config.speculation,
    )
    engine = Engine(model, tokenizer, settings=sharing, adapters=adapters)
    if short := engine.fit_context():
        log.note(f"'{name}': the memory of this engine holds {short} tokens of one request; give it more with --memory")
    engine.warm()
    defaults = Sampling() if config.generation_config == "none" else defaults_of(resolve(folder))
    own = Served(name=name, endpoint=engine, context=engine.context, defaults=defaults)
    return [own, *(own.adapted(one) for one in adapters)]


def deployed(make: Callable[[], Sequence[Served]], scale: Scale) -> list[Served]:
    """The same on a cluster, as many times as it says."""
    from openbook.serve.cluster import deploy

    return deploy(make, scale)


def remote(name: str, url: str) -> list[Served]:
    """The models of another endpoint: the one of this name, its only one under this name, or all under their own."""
    from openbook.chat import wait
    from openbook.cli.chat import endpoint
    from openbook.serve.served import Served

    there = wait(endpoint(url, None, None).models())
    if name == url:
        return [Served(name=one, endpoint=endpoint(url, one, None, retries=0)) for one in there]
    if name not in there and len(there) != 1:
        raise UsageError(f"{url} serves {', '.join(there) or 'nothing'}: give one of these names (NAME={url}).")
    return [Served(name=name, endpoint=endpoint(url, name if name in there else there[0], None, retries=0))]


def _named(words: Sequence[str]) -> dict[str, str]:
    """Folders by the names under which they are served."""
    if not words:
        raise UsageError("Nothing to serve: give a model folder. See: openbook serve --help")
    named: dict[str, str] = {}
    for word in words:
        name, given, folder = word.partition("=")
        if "://" in name:
            name, given, folder = word, "=", word
        if not given:
            name, folder = Path(word).resolve().name if Path(word).exists() else word, word
        if not name or not folder:
            raise UsageError(f"A model is DIR or NAME=DIR: got '{word}'.")
        if name in named:
            raise UsageError(f"Two models would be called '{name}': give one a name of its own (NAME=DIR).")
        named[name] = folder
    return named


def _adapters(words: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, str]]:
    """For each model its adapters: names and folders."""
    found: dict[str, dict[str, str]] = {}
    for word in words:
        names, given, folder = word.partition("=")
        model, inside, name = names.rpartition("/")
        model = model if inside else models[0]
        if not given or not name or not folder or model not in models or (len(models) > 1 and not inside):
            form = "NAME=DIR" if len(models) == 1 else f"MODEL/NAME=DIR, MODEL being one of {', '.join(models)}"
            raise UsageError(f"--adapter takes {form}: got '{word}'.")
        if name in models or any(name in one for one in found.values()):
            raise UsageError(f"The name '{name}' is taken: give the adapter another.")
        found.setdefault(model, {})[name] = folder
    return found
