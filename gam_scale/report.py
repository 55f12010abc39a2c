"""report.html: one self-contained page on a run, for a browser, a phone or a printer."""


