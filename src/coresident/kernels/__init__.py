"""One kernel family a file: what it can do, how it packs weights, the loop nest it emits."""
