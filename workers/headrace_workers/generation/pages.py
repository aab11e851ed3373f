"""Which page of the KV cache belongs to whom: numbers of pages only, the runner has the tensors.

Paged as in vLLM (Kwon et al., SOSP 2023). A full page is known by a digest of its tokens and of all before them, so a
prompt that begins like an earlier one finds the keys and values of the beginning computed. A page that nobody holds
any more stays known until the room is needed: the cache costs nothing that anybody else could use.
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

from headrace_workers.generation.runner import PAGE_TOKENS

__all__ = ["PagePool"]

_DIGEST_BYTES: Final = 16


class PagePool:
    """All pages of one runner.

    A page is free, or held by one or more sequences, or idle: held by none, but known by its digest. Whoever holds a
    page with a digest also holds the pages before it, and `release` lets go of the last page first. So what follows a
    page has always been idle for longer, and the page that has been idle for longest never has a follower.

    Args:
        pages: how many there are.
        page_tokens: how many tokens' keys and values one has room for.
        prefix_cache: whether full pages are shared; if not, nothing is ever found.

    Raises:
        ValueError: not even one page, or pages without room.
    """

    def __init__(self, pages: int, *, page_tokens: int = PAGE_TOKENS, prefix_cache: bool = True) -> None:
        if pages < 1 or page_tokens < 1:
            raise ValueError(f"{pages} pages of {page_tokens} tokens: there must be at least one of each")
        self.pages = pages
        self.page_tokens = page_tokens
        self.prefix_cache = prefix_cache
        self.asked_tokens = 0
        """Tokens of all sequences that were admitted, each counted once however often it was preempted."""
        self.found_tokens = 0
        """Those among them whose keys and values were there already."""
        # Secret, so that nobody can work out prompts whose digests collide and be shown another one's pages.
        self._root = secrets.token_bytes(_DIGEST_BYTES)
        self._free = list(range(pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * pages
        self._digest_of: list[bytes | None] = [None] * pages
        self._page_of: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """How many pages `allocate` can give: those that are free or idle."""
        return len(self._free) + len(self._idle)

    @property
    def free(self) -> int:
        """How many pages hold nothing of use."""
        return len(self._free)

    @property
    def held(self) -> int:
        """How many pages are in use by sequences."""
        return self.pages - self.available

    @property
    def cached(self) -> int:
        """How many pages could be found by their digest, held or idle."""
        return len(self._page_of)

    def pages_for(self, tokens: int) -> int:
        """How many pages so many tokens take."""
        return -(-tokens // self.page_tokens)

    def note_admitted(self, *, asked_tokens: int, found_tokens: int) -> None:
        """Count a sequence's first admission; later ones would count its own pages as a success."""
        self.asked_tokens += asked_tokens
        self.found_tokens += found_tokens

    def digests(self, tokens: Sequence[int], *, after: bytes | None = None) -> list[bytes]:
        """The digests of the full pages that `tokens` make, behind the page of digest `after` or from the beginning."""
        if not self.prefix_cache:
            return []
        size, last, chain = self.page_tokens, after or self._root, []
        for end in range(size, len(tokens) + 1, size):
            last = blake2b(last + array("i", tokens[end - size : end]).tobytes(), digest_size=_DIGEST_BYTES).digest()
            chain.append(last)
        return chain

    def match(self, digests: Iterable[bytes]) -> list[int]:
        """The pages of the longest beginning of `digests` that is there; the caller holds them from now on."""
        found = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            self._hold(page)
            found.append(page)
        return found

    def allocate(self, count: int) -> list[int]:
        """`count` pages that the caller alone holds: free ones, then those that were idle for longest.

        Raises:
            MemoryError: fewer are available; then none is given.
        """
        if count > self.available:
            raise MemoryError(f"{count} pages were asked for and {self.available} of {self.pages} are available")
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def release(self, pages: Sequence[int]) -> None:
        """Let go of pages, given in the order of their tokens."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if self._digest_of[page] is None:
                    self._free.append(page)
                else:
                    self._idle[page] = None

    def publish(self, digest: bytes, page: int) -> int:
        """Let a full page, which the caller holds, be found by its digest.

        Returns:
            The page to hold from now on: `page`, or the one that is known by that digest already. `page` is released
            then, and the other one held.
        """
        known = self._page_of.setdefault(digest, page)
        if known == page:
            self._digest_of[page] = digest
        else:
            self._hold(known)
            self.release([page])
        return known

    def _hold(self, page: int) -> None:
        if self._holders[page] == 0:
            del self._idle[page]
        self._holders[page] += 1

    def _evict(self) -> int:
        """Forget the page that has been idle for longest."""
        page, _ = self._idle.popitem(last=False)
        digest = self._digest_of[page]
        assert digest is not None, "only a page with a digest is idle"
        del self._page_of[digest]
        self._digest_of[page] = None
        return page
