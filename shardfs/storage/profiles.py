"""Credentials of S3 that lie in files: AWS's profiles, through boto3, which knows all that may stand there. Keys in the
environment come first, as they do for AWS's own tools. Knows nothing of stores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shardfs.errors import BadSettingError, MissingExtraError

_KEYS = ("access_key_id", "aws_access_key_id", "credential_provider", "token", "aws_token")
_FILES = (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))


def from_profile(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of obstore for the profile that is asked for (AWS_PROFILE), or the default one where there are such
    files; none where credentials are given otherwise. MissingExtraError without boto3, BadSettingError for a profile
    that is not there."""
    wanted = os.environ.get("AWS_PROFILE")
    given = "AWS_ACCESS_KEY_ID" in os.environ or any(name.lower() in _KEYS for name in settings)
    if given or settings.get("skip_signature") or (wanted is None and not any(map(_is_there, _FILES))):
        return {}
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        if wanted is None:
            return {}
        raise MissingExtraError(f"AWS_PROFILE={wanted}: profiles need boto3: pip install boto3 ({error})") from error
    try:
        session = boto3.session.Session()
        provider = Boto3CredentialProvider(session)
    except (BotoCoreError, ValueError) as error:
        if wanted is None:
            return {}
        raise BadSettingError(f"AWS_PROFILE={wanted}: {error}") from error
    made: dict[str, Any] = {"credential_provider": provider}
    if session.region_name and not any(name.lower() in ("region", "aws_region") for name in settings):
        made["region"] = session.region_name
    return made


def _is_there(file: tuple[str, str]) -> bool:
    variable, default = file
    return Path(os.environ.get(variable) or default).expanduser().is_file()
