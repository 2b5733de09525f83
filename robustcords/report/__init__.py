"""Results of runs, for programs and for people.

Runs are read (`run_report`, `runs`, `run_progress`), grouped into methods and compared (`grouping`, `comparison`,
`intervals`, `cautions`, `front`), and shown: as tables (``*_tables``, in `markdown` or on a terminal), as charts
(``*_charts``, of what `chart` has), and on a `page`.
"""
