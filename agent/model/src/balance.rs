//! Choosing one endpoint: pure functions of (candidates, load, randomness).
