"""Think: reasoning in ``<think>`` tags and no known form of calls. For models that only think, such as GLM-Z1."""

from __future__ import annotations

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, needs
from penstock.types.decision import Verdict


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_or_the_tokenizer_has_think_tags=evidence.mentions("<think>") or evidence.has_token("<think>")
    )


DIALECT = Dialect(
    name="think",
    models="models that think and call no tools",
    detect=detect,
    reasoning=Reasoning(begin="<think>", end="</think>"),
    samples=(
        Sample(
            title="reasoning that the prompt has opened",
            text="Easy.</think>\nFour.",
            in_reasoning=True,
            reasoning="Easy.",
            content="Four.",
        ),
        Sample(title="no reasoning", text="Four < five.", content="Four < five."),
    ),
)
