"""Former names of selectors and mergers: files of earlier versions hold them, and nothing else knows them."""

from typing import Any

_FORMER = {"top_relevance": "top_k", "adaptive": "aks", "differential": "dfm", "max_relevance": "max"}
_FIELDS = ("selector", "selectors", "merger", "mergers", "variants")


def names_of_today(content: Any, field: str = "") -> Any:
    """What a file holds, read from JSON or YAML, with the names that selectors and mergers have today."""
    if isinstance(content, dict):
        return {name: names_of_today(part, name) for name, part in content.items()}
    if isinstance(content, list):
        return [names_of_today(part, field) for part in content]
    return _FORMER.get(content, content) if field in _FIELDS and isinstance(content, str) else content
