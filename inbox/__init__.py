"""The receiver: stores each webhook before it acknowledges it.

A 2xx response means that the event is committed and fsynced in the table `inbox`. `relay` processes that table; this
package never imports `relay`.
"""
