"""Run records -> one HTML page: what the teacher was worth, what it cost, and how each student came to be."""

from __future__ import annotations

from predistill.report.footprint import Footprint, read_footprint
from predistill.report.page import report_page
from predistill.report.records import Record, read_record

__all__ = ["Footprint", "Record", "read_footprint", "read_record", "report_page"]
