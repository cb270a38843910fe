"""What goes wrong with an object store, in one line without secrets."""


class StorageError(ValueError):
    """The object store refuses, or holds something else than it should; one line with the remedy.

    Args:
        message: the line.
        code: the server's error code, such as NoSuchKey; empty where there is none.

    Attributes:
        code: the server's error code, such as NoSuchKey; empty where there is none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class StorageUnavailableError(StorageError):
    """The server cannot be reached or broke off; the same call again goes on where this one ended."""


REFUSED_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
}
TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "InternalError", "BadDigest", "IncompleteBody", "OperationAborted"}


def explained(error: Exception, *, bucket: str, endpoint: str) -> StorageError:
    """What went wrong, in one line without secrets: server messages and URLs, which may hold some, are left out."""
    from botocore import exceptions as boto

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, boto.ClientError):
        cause = cause.__cause__
    if cause is not None:
        code = str(cause.response.get("Error", {}).get("Code", ""))
        status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return _explained_answer(code, status, bucket=bucket, endpoint=endpoint)
    no_credentials = (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
        boto.ProfileNotFound,
    )
    if isinstance(error, no_credentials):
        return StorageError(
            f"no credentials for s3://{bucket} ({type(error).__name__}): set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StorageError(f"the certificate of {endpoint} is not trusted; name its authority in AWS_CA_BUNDLE")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return StorageError("AWS_ENDPOINT_URL is no URL: write http://host:port or https://host")
    return StorageUnavailableError(
        f"{endpoint} cannot be reached or broke off ({type(error).__name__}); check the network and AWS_ENDPOINT_URL"
    )


def _explained_answer(code: str, status: int, *, bucket: str, endpoint: str) -> StorageError:
    if code in REFUSED_CREDENTIALS:
        return StorageError(
            f"{endpoint} refuses the credentials ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, with "
            "temporary ones, AWS_SESSION_TOKEN; AWS_ENDPOINT_URL says which server is asked",
            code,
        )
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{endpoint} refuses requests of this machine: its clock is wrong", code)
    if code == "NoSuchBucket":
        return StorageError(
            f"there is no bucket {bucket!r} at {endpoint}: make it, or correct the URL or AWS_ENDPOINT_URL", code
        )
    if code in TRANSIENT_CODES or status in (408, 429) or (status >= 500 and status != 501):
        return StorageUnavailableError(f"{endpoint} is in trouble ({code or status}); try again later", code)
    if status == 403:
        return StorageError(
            f"{endpoint} does not allow this on s3://{bucket} ({code}): check the credentials and their permissions",
            code,
        )
    if status == 404:
        return StorageError(f"{endpoint} has no such object or bucket in s3://{bucket} ({code})", code)
    return StorageError(f"{endpoint} answered {code or 'an error'} (HTTP {status}) for s3://{bucket}", code)
