"""How is a network run, watched, cut and resumed? The ground on which all rooms stand."""
