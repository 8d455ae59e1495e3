"""From logits to tokens: an ordered pipeline of steps over the rows of one batch.

The order is that of vLLM and transformers:

    raw log-probabilities (before anything changes the logits)
    -> grammar mask -> allowed tokens -> bad tokens -> min_tokens -> logit bias -> penalties
    -> temperature -> min_p -> top_k -> top_p -> typical_p -> draw

A request lists at admission which steps it needs; a row pays for no other. Every step is a pure function of the row's
own logits, parameters and history, so that a token never depends on what else is in the batch. Knows no model.
"""
