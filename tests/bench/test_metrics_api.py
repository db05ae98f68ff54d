"""The benchmark of the metrics server: a small run has all its figures.

No times are asserted here; they belong to a quiet machine.
"""

from tests.bench.metrics_api import Plan, figures


async def test_a_small_run_has_all_figures():
    """Every pod is scraped, and every question answered in full."""
    scraping, *answers, half = [line async for line in figures(Plan(6, 0.5, 3, interval=0.2))]

    assert ("scraping", 6, 0) == (scraping["figure"], scraping["pods"], scraping["without_sample"])
    assert scraping["scrapes_per_second"] > 5
    assert scraping["exposition_bytes"] > 50_000
    assert scraping["peak_rss_mib"] > 0
    assert [6, 6, 1] == [line["items"] for line in answers]
    assert all(0 < line["p50_ms"] <= line["p99_ms"] <= line["worst_ms"] for line in answers)
    assert 3 == half["items"]
    assert 0 <= half["oldest_sample_s"] < 30
