"""Logging in and out."""

from __future__ import annotations

from django.contrib.auth.views import LoginView, LogoutView

from accounts.login import LoginForm


class Login(LoginView):
    """The door, with the brake on guessing that accounts.login holds."""

    template_name = "login.html"
    authentication_form = LoginForm
    redirect_authenticated_user = True


class Logout(LogoutView):
    """By POST only, so that no foreign page can log a person out."""

    http_method_names = ["post"]
