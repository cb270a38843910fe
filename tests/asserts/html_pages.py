"""A page as a browser would read it: tags, attributes, rows of tables, text."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, attributes and text of a document; every tag must be closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, document):
        super().__init__()
        self.tags, self.attributes, self.rows, self.text, self.open = [], [], [], [], []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
