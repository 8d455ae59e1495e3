"""All dialects, in the order in which they are asked. A more specific one stands before one that it resembles."""

from __future__ import annotations

from penstock.frontend.dialects import (
    deepseek_v3,
    deepseek_v4,
    deepseek_v31,
    deepseek_v32,
    gemma4,
    glm,
    gpt_oss,
    granite,
    hermes,
    hy_v3,
    kimi_k2,
    llama3_json,
    llama_pythonic,
    minicpm5,
    minimax_m2,
    mistral_v7,
    mistral_v11,
    mistral_v13,
    phi4,
    qwen3_coder,
    step3_5,
    think,
)
from penstock.frontend.dialects.contract import Dialect

DIALECTS: tuple[Dialect, ...] = (
    step3_5.DIALECT,
    qwen3_coder.DIALECT,
    glm.DIALECT_4_5,
    glm.DIALECT_4_7,
    minimax_m2.DIALECT,
    minicpm5.DIALECT,
    gemma4.DIALECT,
    granite.DIALECT,
    phi4.DIALECT,
    hy_v3.DIALECT,
    hy_v3.DIALECT_PREVIEW,
    hermes.DIALECT,
    mistral_v7.DIALECT,
    mistral_v11.DIALECT,
    mistral_v13.DIALECT,
    deepseek_v3.DIALECT,
    deepseek_v31.DIALECT,
    deepseek_v32.DIALECT,
    deepseek_v4.DIALECT,
    kimi_k2.DIALECT,
    gpt_oss.DIALECT,
    llama3_json.DIALECT,
    llama_pythonic.DIALECT,
    think.DIALECT,  # the last: it takes what thinks and calls nothing
)
