"""`histo serve`: bundles behind HTTP, for programs (the Open Inference Protocol), for `curl` and for a browser.

    request → app (who may ask, how much) → protocol or uploads (bytes → tiles) → models (which bundle)
            → batching (many requests → one run of the engine) → protocol or app (logits → bytes)

`run` opens the bundles and the port and ends on a signal; `app` has the routes; `guard` stands before all of them;
`settings` holds the user's choices and `refusals` what clients are told; `telemetry` counts and logs; `page` is what a
browser gets. One event loop owns all state: no lock is needed. Only decoding (a pool of threads) and the engine (a
thread of C++) run beside it.
"""
