"""GitHub's REST API for the issues of repositories: https://docs.github.com/en/rest/issues/issues and its OpenAPI description.

Pages have `Link` headers, and each answer has the rate limit's.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

TOKEN = "github-token"
_VERSION = "2022-11-28"
_LATER = 4_000_000_000
_DOCS = "https://docs.github.com/rest"
_USER_LINKS = (
    "followers", "following", "gists", "starred", "subscriptions", "organizations", "repos", "events", "received_events",
)  # fmt: skip
_ISSUE_LINKS = ("labels", "comments", "events")
_EDITABLE = {"title", "body", "state", "state_reason", "labels", "assignees", "milestone"}

Issue = dict[str, Any]


class GitHub(VendorService):
    """Issues of any repository that `issue` has made, for the bearer of TOKEN."""

    def __init__(self) -> None:
        self._issues: dict[str, list[Issue]] = {}
        super().__init__()

    def issue(self, repository: str, title: str, *, body: str = "", labels: tuple[str, ...] = (), **more: Any) -> Issue:  # noqa: ANN401  # any JSON
        """Open an issue in `repository`, such as `acme/shop`; `more` are further members."""
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

    def edit(self, repository: str, number: int, **changes: Any) -> Issue:  # noqa: ANN401  # any JSON
        """Change an issue as its owner would."""
        issue = self._issues[repository][number - 1]
        now = self._tick()
        issue |= changes | {"updated_at": now}
        if "state" in changes:
            issue["closed_at"] = now if changes["state"] == "closed" else None
        return issue

    def number_of(self, repository: str) -> int:
        """Return the id of a repository."""
        return 1_296_269 + list(self._issues).index(repository)

    def webhook(self, repository: str, number: int, action: str) -> dict[str, Any]:
        """Make the payload of the event `issues` about an issue."""
        owner, _, name = repository.partition("/")
        return {
            "action": action,
            "issue": self._issues[repository][number - 1],
            "repository": {
                "id": self.number_of(repository),
                "name": name,
                "full_name": repository,
                "owner": self._user(owner, 1),
            },
            "sender": self._user("octocat", 1),
        }

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller, count the call, and answer."""
        if asked.headers.get("authorization") not in {f"Bearer {TOKEN}", f"token {TOKEN}"}:
            return self._problem(401, "Bad credentials")
        if "user-agent" not in asked.headers:
            return self._problem(403, "Request forbidden by administrative rules: a User-Agent is required.")
        return self._answer(asked)

    def _answer(self, asked: Asked) -> Act:
        match asked.method, asked.path:
            case "GET", ("repos", owner, name, "issues"):
                return self._list(f"{owner}/{name}", asked.query)
            case "GET", ("repositories", number, "issues"):
                names = [name for name in self._issues if str(self.number_of(name)) == number]
                return self._list(names[0], asked.query) if names else self._problem(404, "Not Found")
            case "POST", ("repos", owner, name, "issues"):
                return self._create(f"{owner}/{name}", asked.body)
            case "GET" | "PATCH", ("repos", owner, name, "issues", number) if number.isdigit():
                return self._one(asked, f"{owner}/{name}", int(number))
        return self._problem(404, "Not Found")

    def _list(self, repository: str, query: dict[str, str]) -> Act:
        if repository not in self._issues:
            return self._problem(404, "Not Found")
        state = query.get("state", "open")
        since = datetime.fromisoformat(query.get("since", "1970-01-01T00:00:00Z"))
        found = [
            issue
            for issue in self._issues[repository]
            if state in {"all", issue["state"]}
            and set(filter(None, query.get("labels", "").split(","))) <= {label["name"] for label in issue["labels"]}
            and datetime.fromisoformat(issue["updated_at"]) >= since
        ]
        at = f"{query.get('sort', 'created')}_at"
        found.sort(key=lambda issue: (issue[at], issue["number"]), reverse=query.get("direction", "desc") == "desc")
        size, page = min(int(query.get("per_page", "30")), 100), int(query.get("page", "1"))
        last = max(1, -(-len(found) // size))
        shown = {"prev": page - 1, "first": 1} if page > 1 else {}
        shown |= {"next": page + 1, "last": last} if page < last else {}
        address = f"{self.url}/repositories/{self.number_of(repository)}/issues"  # GitHub's links go by id
        links = ", ".join(f'<{address}?{urlencode(query | {"page": n})}>; rel="{name}"' for name, n in shown.items())
        return self._counted(200, found[(page - 1) * size : page * size], **({"link": links} if links else {}))

    def _create(self, repository: str, body: dict[str, Any]) -> Act:
        if not isinstance(body.get("title"), str):
            return self._problem(422, "Validation Failed")
        issue = self.issue(repository, body["title"], body=body.get("body") or "", labels=tuple(body.get("labels", ())))
        return self._counted(201, issue, location=issue["url"])

    def _one(self, asked: Asked, repository: str, number: int) -> Act:
        if number > len(self._issues.get(repository, ())):
            return self._problem(404, "Not Found")
        if asked.method == "PATCH":
            changes = {name: value for name, value in asked.body.items() if name in _EDITABLE}
            if "labels" in changes:
                changes["labels"] = [self._label(repository, name) for name in changes["labels"]]
            return self._counted(200, self.edit(repository, number, **changes))
        issue = self._issues[repository][number - 1]
        return self._counted(200, issue)

    def _counted(self, status: int, body: object, **headers: str) -> Act:
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
