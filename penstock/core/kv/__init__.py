"""KV bookkeeping: block identity, pools, tables of several groups per request. Knows neither plans nor requests."""
