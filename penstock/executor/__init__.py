"""One step on one rank: inputs, forward, sampler, KV storage, memory plan. Knows no scheduler and no frontend."""
