"""Text between two marks of a file, written again by a tool."""


def renewed(text: str, begin: str, end: str, content: str) -> str:
    """`text` with `content` in place of what stands between the marks `begin` and `end`, each on a line of its own."""
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
