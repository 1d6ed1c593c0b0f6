"""What the rules of several methods share: task vectors, spans, parameters, papers."""
