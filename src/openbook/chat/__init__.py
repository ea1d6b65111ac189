"""The waist: what anything that speaks can be asked, and by what it answers. Applications know nothing below it.

    apps, evaluate, serve, cli ──▶ Chat · Complete · Embed · Score · Tokenize ◀── local model · remote endpoint · script

The core is asynchronous; `iterate` and `wait` are its synchronous face:

    answer = wait(collect(local.chat([Message.user("Who crossed the river?")])))
    for delta in iterate(local.chat([Message.user("Who crossed the river?")])):
        print(delta.text, end="", flush=True)

A local model is `openbook.chat.local.Local`; it needs torch, nothing here does. One at the other
end of a wire is `openbook.chat.remote.Remote`.
"""

from openbook.chat.blocking import iterate, wait
from openbook.chat.messages import (
    Answer,
    Delta,
    Logprob,
    Message,
    Scored,
    Terms,
    Tool,
    ToolCall,
    ToolCallPart,
    ToolUse,
    Usage,
    collect,
    collect_all,
)
from openbook.chat.protocols import Chat, Complete, Embed, Score, Tokenize, capabilities, require
from openbook.chat.scripted import Call, Scripted
from openbook.generate.sampling import Sampling

__all__ = [
    "Answer",
    "Call",
    "Chat",
    "Complete",
    "Delta",
    "Embed",
    "Logprob",
    "Message",
    "Sampling",
    "Score",
    "Scored",
    "Scripted",
    "Terms",
    "Tokenize",
    "Tool",
    "ToolCall",
    "ToolCallPart",
    "ToolUse",
    "Usage",
    "capabilities",
    "collect",
    "collect_all",
    "iterate",
    "require",
    "wait",
]
