"""The code of each study's page, in a module with the study's name; `bakeoff.report.page` finds it."""
