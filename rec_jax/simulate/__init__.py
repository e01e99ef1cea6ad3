"""What would have happened: the value of a policy from the log of another one.

    feedback.py     logged bandit feedback as columns, checked
    off_policy.py   estimators of the value: IPS, SNIPS, direct method, doubly robust ones
    intervals.py    bootstrap, normal, and bounds that hold for any number of rows
    support.py      whether the log can answer: weights, effective sample, support
    judge.py        all of these for one log
    log_files.py    a log's file -> columns
    run_policy.py   a run's softmax over the catalogue as the policy to evaluate
    judge_log.py    from a log's file, and a run where there is one, to the judgement
"""
