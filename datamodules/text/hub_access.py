"""Whether the Hugging Face hub answers, asked once and quickly."""

import functools
import sys


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the hub answers within seconds; its own client repeats a failed name lookup for minutes.

    Proxy settings that the HTTP client cannot use (an IPv6 range in NO_PROXY, socks5 without socksio) make the hub
    unreachable like a missing network does. Its client is then told to stay offline: it would trip over them as well,
    even where all that is asked for is cached.
    """
    import httpx
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5)
    except (httpx.HTTPError, OSError):
        return False
    except Exception as error:  # httpx.InvalidURL and ImportError, neither of them an HTTPError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(
            f"the Hugging Face hub is not reachable: the proxy settings of the environment cannot be used ({reason}); "
            "what is cached or packaged goes on",
            file=sys.stderr,
        )
        constants.HF_HUB_OFFLINE = True
        return False
    return True
