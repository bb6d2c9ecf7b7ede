"""Where a step's job runs. ``base`` says what a runner is; each other module is one."""
