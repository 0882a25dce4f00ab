"""Sessions of stdio servers: who may have one, which container serves it, and the broker that speaks for them."""
