"""HTTP over whatever speaks the waist: the OpenAI API and what its users expect beside it, bounded on every side.

    served.py   the models by name, and what each can do          settings.py   every bound and policy, in one place
    wire/       what comes in and goes out, as typed values       routes/       one file for each family of routes
    app.py      the table of routes → an ASGI application         gate.py       who may come in, and how much
    events.py   an answer as events: paced, watched, cancellable  errors.py     errors as statuses
    run.py      one process: listen, be ready, drain, stop

Nothing here imports torch: a local engine, a remote endpoint and a script are the same to it.
"""

from openbook.errors import MissingExtra

try:
    import msgspec as _msgspec  # noqa: F401
    import prometheus_client as _prometheus  # noqa: F401
    import starlette as _starlette  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ImportError as error:
    raise MissingExtra(str(error.name), "serve", "Serving") from error
