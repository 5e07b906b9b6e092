"""The run report: one HTML file, made from what a run wrote, readable offline for as long as there are browsers.

This package reads files and imports nothing of ours but [`realm_hf.runs.records`], so that a report can be made of a
run on any machine. The curves are inline SVG written by hand: no dependency, crisp at any size, and styled by the
page's own colours, so that one drawing serves light and dark, which a picture from a plotting library does not.
"""

from realm_hf.report.answers import write_answer_report
from realm_hf.report.page import write_report
from realm_hf.runs.records import RunRecord, read_run

__all__ = ["RunRecord", "read_run", "write_answer_report", "write_report"]
