"""The stored shapes and the rules about values: pure, without a client, a clock or a thread."""
