"""Codebooks: vectors of magnitudes that one code stands for.

``iq2_xxs`` holds the 256 points, chosen from the E8 lattice, that the GGUF type of this name indexes (a constant of
the file format, defined by ggml). A point has eight magnitudes out of 8, 25 and 43; here they are divided by 8, which
is exact, so that ``scale * subscale * magnitude`` is the value.
"""

from __future__ import annotations

import base64
from functools import cache

import torch

_LEVELS = {"iq2_xxs": (8 / 8, 25 / 8, 43 / 8)}
_POINTS = {  # two bits per magnitude, the first one lowest
    "iq2_xxs": (
        "000621po*D3IGuR6aXLqA^<1=DgZ$ML;z3#SO8%FWB`Bwf&hvDq5uH_1OX5M6#+m2gaMcV00II6A_9T}0R#jD5CkCvBm_VNLIg+z"
        "U<82#ganWTqyzv30tE;KAO%JRX$61<kp&3`5C%X7ga)Jr00;#L2nZAiC<s9aL<mp_QV56$1PMS10tyrg0T2Wb5D*~{KoDRMgb<Jr"
        "l@I_C2oWF=P!U=YfDt4TMG^oM2oxX`B@{^%fD{-NVif=u78U^*1Q-w)Kp24-02u`tpczpb03ZS&3Lr!vVIY7Yf*>g&NFe|s0wMt<"
        "1SAk7KqOWq03|^sWF?R$2q+*Zlqf_h0YC&m5I`6}AwVQRKtM=9RzP4tfk1>nkU#)IAVFb4fI)>p0YVT$NJ3UZXhHx)2t*)6fJB)@"
        "5=A6M07d~w1V|7_KuASM07+O$VM&5XMM{uL08j`}5l|UWAW(o%h)@JkLQ$kqky4OUl2i&+0ajF209X-N8CYakKv@V{1Yi(gKwxNK"
        "0AW>O7-C>z0AvMZ5M>f&gk?f#0DuC33V=a?f`9~p7=b{65rP4P1cVTT6@);9V1xjLMun7x35Gz1V1@#S1c?!f1dtGrB#=Omp^z4l"
        "fRRO#0F)w>M3hmLftVnf0-#W!g`f$c0HPSAP^bi{"
    ),
}


@cache
def codebook(name: str) -> torch.Tensor:
    """[number of codes, 8] float32 magnitudes."""
    packed = torch.frombuffer(bytearray(base64.b85decode(_POINTS[name])), dtype=torch.uint8)
    digits = (packed[:, None] >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)) & 3
    return torch.tensor(_LEVELS[name], dtype=torch.float32)[digits.long()].reshape(-1, 8)
