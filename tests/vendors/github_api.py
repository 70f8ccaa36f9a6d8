"""GitHub's REST API for the issues of repositories: https://docs.github.com/en/rest/issues/issues and its OpenAPI description.

Pages have `Link` headers, and each response has rate limit headers.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

TOKEN = "github-token"
_VERSION = "2022-11-28"
_FIRST_REPOSITORY = 1_296_269
_LATER = 4_000_000_000
_DOCS = "https://docs.github.com/rest"
_USER_LINKS = (
    "followers", "following", "gists", "starred", "subscriptions", "organizations", "repos", "events", "received_events",
)  # fmt: skip
_ISSUE_LINKS = ("labels", "comments", "events")

Issue = dict[str, Any]


class GitHub(VendorService):
    """Issues of the repositories made by `issue`, for the bearer of TOKEN."""

    def __init__(self) -> None:
        self._issues: dict[str, list[Issue]] = {}
        super().__init__()

    def issue(self, repository: str, title: str, *, body: str = "", labels: tuple[str, ...] = (), **more: Any) -> Issue:  # noqa: ANN401  # any JSON
        """Open an issue in `repository`, such as `acme/shop`; `more` adds members."""
        issues = self._issues.setdefault(repository, [])
        number, now = len(issues) + 1, self._tick()
        at = f"{self.url}/repos/{repository}/issues/{number}"
        made: Issue = {
            "id": 3_000_000_000 + 1000 * len(self._issues) + number,
            "node_id": f"I_{number}",
            "url": at,
            "repository_url": f"{self.url}/repos/{repository}",
            **{f"{name}_url": f"{at}/{name}" for name in _ISSUE_LINKS},
            "html_url": f"https://github.com/{repository}/issues/{number}",
            "number": number,
            "state": "open",
            "state_reason": None,
            "title": title,
            "body": body,
            "user": self._user("octocat", 1),
            "labels": [self._label(repository, name) for name in labels],
            "assignee": None,
            "assignees": [],
            "milestone": None,
            "locked": False,
            "active_lock_reason": None,
            "comments": 0,
            "created_at": now,
            "updated_at": now,
            "closed_at": None,
            "author_association": "OWNER",
            **more,
        }
        issues.append(made)
        return made

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller and respond."""
        if asked.headers.get("authorization") not in {f"Bearer {TOKEN}", f"token {TOKEN}"}:
            return self._problem(401, "Bad credentials")
        if "user-agent" not in asked.headers:
            return self._problem(403, "Request forbidden by administrative rules: a User-Agent is required.")
        names = dict(enumerate(self._issues, start=_FIRST_REPOSITORY))
        match asked.method, asked.path:
            case "GET", ("repos", owner, name, "issues") if f"{owner}/{name}" in self._issues:
                return self._list(f"{owner}/{name}", asked.query)
            case "GET", ("repositories", number, "issues") if int(number) in names:
                return self._list(names[int(number)], asked.query)
            case "GET", ("repos", owner, name, "issues", number):
                for issue in self._issues.get(f"{owner}/{name}", ()):
                    if str(issue["number"]) == number:
                        return self._answer_with_limits(200, issue)
        return self._problem(404, "Not Found")

    def _list(self, repository: str, query: dict[str, str]) -> Act:
        since = datetime.fromisoformat(query.get("since", "1970-01-01T00:00:00Z"))
        found = [each for each in self._issues[repository] if datetime.fromisoformat(each["updated_at"]) >= since]
        at = f"{query.get('sort', 'created')}_at"
        found.sort(key=lambda issue: (issue[at], issue["number"]), reverse=query.get("direction", "desc") == "desc")
        size, page = min(int(query.get("per_page", "30")), 100), int(query.get("page", "1"))
        last = max(1, -(-len(found) // size))
        shown = {"prev": page - 1, "first": 1} if page > 1 else {}
        shown |= {"next": page + 1, "last": last} if page < last else {}
        number = _FIRST_REPOSITORY + list(self._issues).index(repository)
        address = f"{self.url}/repositories/{number}/issues"  # GitHub's links go by id
        links = ", ".join(f'<{address}?{urlencode(query | {"page": n})}>; rel="{name}"' for name, n in shown.items())
        return self._answer_with_limits(
            200, found[(page - 1) * size : page * size], **({"link": links} if links else {})
        )

    def _answer_with_limits(self, status: int, body: object, **headers: str) -> Act:
        return answer_json(status, body, **self._limits(), **headers)

    def _problem(self, status: int, message: str) -> Act:
        return answer_json(
            status, {"message": message, "documentation_url": _DOCS, "status": str(status)}, **self._limits()
        )

    def _limits(self) -> dict[str, str]:
        return {
            "x_ratelimit_limit": "5000",
            "x_ratelimit_remaining": "4999",
            "x_ratelimit_reset": str(_LATER),
            "x_github_api_version_selected": _VERSION,
        }

    def _user(self, login: str, number: int) -> dict[str, Any]:
        at = f"{self.url}/users/{login}"
        return {
            "login": login,
            "id": number,
            "node_id": f"U_{number}",
            "avatar_url": "https://avatars.githubusercontent.com/u/1",
            "gravatar_id": "",
            "url": at,
            "html_url": f"https://github.com/{login}",
            **{f"{name}_url": f"{at}/{name}" for name in _USER_LINKS},
            "type": "User",
            "site_admin": False,
        }

    def _label(self, repository: str, name: str) -> dict[str, Any]:
        at = f"{self.url}/repos/{repository}/labels/{name}"
        return {
            "id": 1,
            "node_id": "L_1",
            "url": at,
            "name": name,
            "color": "d73a4a",
            "default": True,
            "description": None,
        }

    def _tick(self) -> str:
        return self.clock.tick().strftime("%Y-%m-%dT%H:%M:%SZ")
