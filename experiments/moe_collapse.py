"""Without balancing a router sends most tokens to a few experts; a balance loss or a corrected choice prevents it.

Question: why do mixtures of experts need balancing? Method: the same small decoder on letters of stories, with eight
experts, two for each token, trained (a) by the language loss alone, (b) with the load-balancing loss (Fedus et al. 2021
§2.2), (c) with a bias for each expert that is moved against its load and only chooses (Wang et al. 2024, "Auxiliary-
Loss-Free Load Balancing"). Expected (Shazeer et al. 2017 §4): in (a) an expert that is chosen more learns more and is
chosen more; some starve. In (b) and (c) all stay busy, and the loss is hardly worse.
"""

from __future__ import annotations

from typing import Any

from experiments.lab import Made, Results, attention, decoder, lines, means, text, train, windows
from openbook.nn import spec

LENGTH, EXPERTS, CHOSEN = 32, 8, 2
STRETCH = 20  # steps of which the mean is kept
KEYS = ("least", "most", "entropy", "language")
NAMES = ("no balancing", "balance loss", "correction")


def mixture(name: str, hidden: int) -> spec.MoE:
    """Eight experts, two for each token."""
    return spec.MoE(
        experts=EXPERTS,
        top_k=CHOSEN,
        expert=spec.MLP(hidden=hidden),
        routing=spec.Routing(score="sigmoid", correction=name == "correction"),
        balance=0.1 if name == "balance loss" else 0.0,
    )


def run(quick: bool, seed: int) -> Results:
    """For each way: the language loss, and how busy the idlest and the busiest expert of any layer were, over steps."""
    steps, layers, dim = (400, 2, 32) if quick else (1500, 3, 48)
    ids, vocab = text(200_000)
    found: Results = {}
    for name in NAMES:
        blocks = decoder(vocab, [attention(dim)] * layers, dim=dim, ffn=mixture(name, dim))
        rows = Made(windows(ids, LENGTH), seed)
        speed = 0.02 if name == "correction" else 0.0
        _, watch = train(blocks, rows, steps, batch=12, seed=seed, correction=speed)
        found[name] = {key: means([one[key] for one in watch.experts], STRETCH) for key in KEYS}
    return found


def end(values: list[float]) -> float:
    """The mean of the last fifth."""
    last = values[-(len(values) // 5) :]
    return sum(last) / len(last)


def claims(results: Results) -> dict[str, bool]:
    """What the end of training shows."""
    least, most, entropy, loss = ({name: end(results[name][key]) for name in NAMES} for key in KEYS)
    alone, limit = NAMES[0], EXPERTS / CHOSEN
    said = {
        f"without balancing one expert is nearly always chosen ({most[alone]:.1f} of at most {limit:.0f} times its "
        f"share), another never ({least[alone]:.2f})": most[alone] > 0.8 * limit and least[alone] < 0.1
    }
    for name in NAMES[1:]:
        seen = f"busiest {most[name]:.1f}, idlest {least[name]:.2f}, entropy {entropy[name]:.2f} ({entropy[alone]:.2f})"
        even = most[name] < 0.7 * most[alone] and entropy[name] > entropy[alone] + 0.05
        said[f"with the {name} all are busy: {seen}"] = even and least[name] > least[alone] + 0.02
        worse = loss[name] - loss[alone]
        said[f"the {name} costs little: {worse:+.2f} nats a letter"] = worse < 0.15
    return said


def draw(results: Results, figure: Any) -> None:
    """The busiest and the idlest expert over steps."""
    left, right = figure.subplots(1, 2)
    for axes, key, title in ((left, "most", "busiest expert"), (right, "least", "idlest expert")):
        curves = {n: (range(STRETCH, STRETCH * len(results[n][key]) + 1, STRETCH), results[n][key]) for n in NAMES}
        lines(axes, curves, xlabel="step", ylabel="times a fair share of tokens", title=title)
