"""From the state of all requests to the next StepPlan. Knows no executor, no clock and no output."""
