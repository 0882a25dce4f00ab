"""The unix socket between DTMA and the gateway's workers: message models and framing (design §6)."""
